package peer

import (
	"errors"
	"net/http"
	"testing"
	"time"
)

// clock is moved by hand.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newTestAuth(t *testing.T, secret string, c *clock) *Auth {
	t.Helper()
	a, err := NewAuth([]byte(secret), c.now)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

const secret = "0123456789abcdef"

func TestOnlyFreshSignedRequestsAreBelieved(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(h http.Header, method, path *string, body *[]byte, c *clock)
		want   error
	}{
		{"as sent", func(http.Header, *string, *string, *[]byte, *clock) {}, nil},
		{"other body", func(_ http.Header, _, _ *string, b *[]byte, _ *clock) { *b = []byte("{ }") }, ErrForged},
		{"other path", func(_ http.Header, _, p *string, _ *[]byte, _ *clock) { *p = "/v1/settle" }, ErrForged},
		{"other method", func(_ http.Header, m, _ *string, _ *[]byte, _ *clock) { *m = "PUT" }, ErrForged},
		{"other nonce", func(h http.Header, _, _ *string, _ *[]byte, _ *clock) { h.Set(headerNonce, "x") }, ErrForged},
		{"other time", func(h http.Header, _, _ *string, _ *[]byte, _ *clock) { h.Set(headerTime, "1") }, ErrForged},
		{"no signature", func(h http.Header, _, _ *string, _ *[]byte, _ *clock) { h.Del(headerMAC) }, ErrForged},
		{"just in time", func(_ http.Header, _, _ *string, _ *[]byte, c *clock) { c.at = c.at.Add(ageMax) }, nil},
		{"too old", func(_ http.Header, _, _ *string, _ *[]byte, c *clock) { c.at = c.at.Add(ageMax + time.Millisecond) }, ErrStale},
		{"from the future", func(_ http.Header, _, _ *string, _ *[]byte, c *clock) { c.at = c.at.Add(-ageMax - time.Millisecond) }, ErrStale},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &clock{time.UnixMilli(1_800_000_000_000)}
			a := newTestAuth(t, secret, c)
			h, method, path, body := http.Header{}, "POST", "/v1/enlist", []byte("{}")
			a.Sign(h, method, path, body)
			tt.change(h, &method, &path, &body, c)
			if err := a.Check(h, method, path, body); !errors.Is(err, tt.want) {
				t.Errorf("Check = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestAnotherSecretIsForged(t *testing.T) {
	c := &clock{time.UnixMilli(1_800_000_000_000)}
	h := http.Header{}
	newTestAuth(t, "fedcba9876543210", c).Sign(h, "GET", "/v1/identity", nil)
	if err := newTestAuth(t, secret, c).Check(h, "GET", "/v1/identity", nil); !errors.Is(err, ErrForged) {
		t.Errorf("Check = %v, want ErrForged", err)
	}
}

// A request is refused the second time for as long as its signature is fresh, however the clocks differ and whenever
// the memory of nonces turns over.
func TestRepeatedRequestsAreRefusedWhileFresh(t *testing.T) {
	for _, first := range []time.Duration{-ageMax, 0, ageMax} {
		for _, before := range []time.Duration{0, time.Second, ageMax, 2*ageMax - time.Second, 2 * ageMax} {
			c := &clock{time.UnixMilli(1_800_000_000_000)}
			a := newTestAuth(t, secret, c)
			believed := func(what string, h http.Header, want error) {
				t.Helper()
				if err := a.Check(h, "POST", "/v1/enlist", nil); !errors.Is(err, want) {
					t.Fatalf("first seen %v after signing, memory turned %v before: %s = %v, want %v", first, before, what, err, want)
				}
			}
			signed := c.at
			h := http.Header{}
			a.Sign(h, "POST", "/v1/enlist", nil)
			other := func() {
				o := http.Header{}
				a.Sign(o, "POST", "/v1/enlist", nil)
				believed("another request", o, nil)
			}
			c.at = signed.Add(first - before)
			other() // the memory turns here, and again 2*ageMax later
			c.at = signed.Add(first)
			believed("the request", h, nil)
			for at := first; at <= ageMax; at += time.Second {
				c.at = signed.Add(at)
				other()
				believed("its repeat "+at.String()+" after signing", h, ErrReplayed)
			}
		}
	}
}

func TestMemoryOfNoncesIsBounded(t *testing.T) {
	c := &clock{time.UnixMilli(1_800_000_000_000)}
	a := newTestAuth(t, secret, c)
	for range 1000 {
		c.at = c.at.Add(time.Second)
		h := http.Header{}
		a.Sign(h, "GET", "/v1/identity", nil)
		if err := a.Check(h, "GET", "/v1/identity", nil); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(a.recent) + len(a.older); n > 130 {
		t.Errorf("nonces kept = %d, want those of two minutes at most", n)
	}
}

func TestRepliesAreBoundToTheirRequest(t *testing.T) {
	c := &clock{time.UnixMilli(1_800_000_000_000)}
	a := newTestAuth(t, secret, c)
	h := http.Header{}
	a.SignReply(h, "nonce", 200, []byte("{}"))
	for _, tt := range []struct {
		name, nonce string
		status      int
		body        string
		want        error
	}{
		{"as sent", "nonce", 200, "{}", nil},
		{"to another request", "other", 200, "{}", ErrForged},
		{"other status", "nonce", 409, "{}", ErrForged},
		{"other body", "nonce", 200, "{ }", ErrForged},
	} {
		if err := a.CheckReply(h, tt.nonce, tt.status, []byte(tt.body)); !errors.Is(err, tt.want) {
			t.Errorf("%s: CheckReply = %v, want %v", tt.name, err, tt.want)
		}
	}
}

func TestShortSecretIsRefused(t *testing.T) {
	_, err := NewAuth([]byte("short"), time.Now)
	if want := "mesh secret has fewer than 16 bytes: make one with `openssl rand -hex 32`"; err == nil || err.Error() != want {
		t.Errorf("NewAuth = %v, want %s", err, want)
	}
}
