package peer

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/interceptor"
	"txmesh/txn"
)

// counted is a body that notes how much of it was read.
type counted struct {
	in   io.Reader
	read int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.read += n
	return n, err
}

// What a sender has not proved yet must not cost more than a little memory.
func TestStrangersAreReadNoFurtherThanTheyHaveProved(t *testing.T) {
	const size = 4 << 20
	for _, tt := range []struct {
		name    string
		change  func(r *http.Request, m *mesh)
		status  int
		most    int
		refused []string
	}{
		{"signed head", func(*http.Request, *mesh) {}, 400, size, nil}, // believed, and malformed
		{"certificate", func(r *http.Request, m *mesh) {
			r.Header.Del(headerHead)
			m.server.opt.Caller = func(*http.Request) string { return "spiffe://mesh/x" }
		}, 400, size, nil},
		{"no signature", func(r *http.Request, _ *mesh) { r.Header.Del(headerMAC) }, 401, 0, []string{"unsigned"}},
		{"no signature but a certificate", func(r *http.Request, m *mesh) {
			r.Header.Del(headerMAC)
			m.server.opt.Caller = func(*http.Request) string { return "spiffe://mesh/x" }
		}, 401, 0, []string{"unsigned"}},
		{"a head of nobody", func(r *http.Request, _ *mesh) { r.Header.Set(headerHead, "x") }, 413, 0, []string{"large"}},
		{"a head of an older release", func(r *http.Request, _ *mesh) { r.Header.Del(headerHead) }, 413, 0, []string{"large"}},
		{"a head for another length", func(r *http.Request, _ *mesh) { r.ContentLength++ }, 413, 0, []string{"large"}},
		{"a body of no known length", func(r *http.Request, _ *mesh) { r.ContentLength = -1 }, 413, strangerMax + 1, []string{"large"}},
		{"another body under a signed head", func(r *http.Request, _ *mesh) {
			r.Body.(*body).in = bytes.NewReader(bytes.Repeat([]byte("y"), size))
		}, 401, size, []string{"forged"}},
		{"a signed head that is old", func(_ *http.Request, m *mesh) {
			m.clock.at = m.clock.at.Add(ageMax + time.Millisecond)
		}, 401, 0, []string{"stale"}},
		{"a signed head that is old, and a certificate", func(_ *http.Request, m *mesh) {
			m.clock.at = m.clock.at.Add(ageMax + time.Millisecond)
			m.server.opt.Caller = func(*http.Request) string { return "spiffe://mesh/x" }
		}, 401, 0, []string{"stale"}},
		{"a signed head that was seen", seen, 401, 0, []string{"replayed"}},
		{"a signed head that was seen before a forged body", func(r *http.Request, m *mesh) {
			first := r.Clone(r.Context())
			first.Body = io.NopCloser(strings.NewReader("y"))
			m.server.ServeHTTP(httptest.NewRecorder(), first)
		}, 401, 0, []string{"forged", "replayed"}},
		{"a head that was seen, without its signature", func(r *http.Request, m *mesh) {
			seen(r, m)
			r.Header.Del(headerHead)
			m.server.opt.Caller = func(*http.Request) string { return "spiffe://mesh/x" }
		}, 401, size, []string{"replayed"}},
		{"a body that took too long", func(r *http.Request, m *mesh) {
			r.Body.(*body).begin = func() { m.clock.at = m.clock.at.Add(ageMax + time.Millisecond) }
		}, 401, size, []string{"stale"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMesh(t)
			data := bytes.Repeat([]byte("x"), size)
			r := httptest.NewRequest("POST", "/v1/enlist", nil)
			b := &body{counted: counted{in: bytes.NewReader(data)}}
			r.Body, r.ContentLength = b, size
			newTestAuth(t, secret, m.clock).Sign(r.Header, "POST", "/v1/enlist", data)
			tt.change(r, m)
			w := httptest.NewRecorder()
			m.server.ServeHTTP(w, r)
			if w.Code != tt.status || b.read > tt.most {
				t.Errorf("answered %d after %d bytes, want %d after %d at most: %s", w.Code, b.read, tt.status, tt.most, w.Body)
			}
			if diff := cmp.Diff(tt.refused, m.refused); diff != "" {
				t.Errorf("counted differs (-want +got):\n%s", diff)
			}
		})
	}
}

type body struct {
	counted
	begin func() // before the first byte; nil: nothing
}

func (b *body) Read(p []byte) (int, error) {
	if b.begin != nil {
		b.begin()
		b.begin = nil
	}
	return b.counted.Read(p)
}

func (*body) Close() error { return nil }

// seen sends a request that is to come again.
func seen(r *http.Request, m *mesh) {
	first := r.Clone(r.Context())
	first.Body = io.NopCloser(bytes.NewReader(bytes.Repeat([]byte("x"), int(r.ContentLength))))
	m.server.ServeHTTP(httptest.NewRecorder(), first)
}

// A small message of a release that signs no head is still believed.
func TestSmallMessagesNeedNoSignedHead(t *testing.T) {
	m := newMesh(t)
	r := httptest.NewRequest("GET", "/v1/identity", nil)
	newTestAuth(t, secret, m.clock).Sign(r.Header, "GET", "/v1/identity", nil)
	r.Header.Del(headerHead)
	w := httptest.NewRecorder()
	if m.server.ServeHTTP(w, r); w.Code != 200 {
		t.Errorf("answered %d %s", w.Code, w.Body)
	}
}

func TestWhoMayNotJoinIsToldSo(t *testing.T) {
	m := newMesh(t)
	const id = ownerA + ".1"
	m.begin(id)
	hash, doc := document(t)
	m.docsB.docs[hash] = doc
	asked := 0
	m.server.opt.May = func(caller string) error {
		asked++
		return interceptor.ErrDenied
	}
	_, err := m.relay.Enlist(t.Context(), id, txn.Enlist{Branch: txn.Branch{Key: "k", Note: note(hash)}})
	if !errors.Is(err, interceptor.ErrDenied) || !strings.Contains(err.Error(), "not allowed") {
		t.Errorf("Enlist = %v, want ErrDenied", err)
	}
	if err := m.relay.Returned(t.Context(), id, txn.Returned{Branch: "0", Op: txn.Forward, Outcome: txn.OK}, true); !errors.Is(err, interceptor.ErrDenied) {
		t.Errorf("Returned = %v, want ErrDenied", err)
	}
	if _, err := m.client.Settle(t.Context(), interceptor.HomeCall{Home: ownerA, Deadline: time.Now()}); !errors.Is(err, interceptor.ErrDenied) {
		t.Errorf("Settle = %v, want ErrDenied", err)
	}
	if _, err := m.client.Status(t.Context(), ownerA, []txn.ID{id}); err != nil || asked != 3 {
		t.Errorf("Status = %v after %d questions, want nil after 3", err, asked)
	}
}
