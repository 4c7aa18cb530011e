package conformance

import (
	"io"
	"net"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	spechttp2 "github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// TestH2Spec runs h2spec against a server, and against a sidecar in front of it. What the server alone passes must pass
// through the sidecar.
func TestH2Spec(t *testing.T) {
	server := httpServer(t)
	alone, behind := h2spec(t, server), h2spec(t, throughOne(t, server))
	if len(alone) < 140 {
		t.Fatalf("h2spec ran %d cases, want all of its 140", len(alone))
	}
	bad := 0
	for name, err := range behind {
		switch {
		case err == nil:
		case alone[name] != nil:
			t.Logf("%s: the server alone fails as well: %v", name, alone[name])
		default:
			bad++
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Logf("%d cases, %d failed behind the sidecar and not before", len(behind), bad)
}

// httpServer is a plain server of HTTP/2 with prior knowledge.
func httpServer(t *testing.T) string {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// A request that breaks off gets no answer that anybody waits for.
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(w, "a body of some length for tests of flow control\n")
	})
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: h, Protocols: &protocols, ReadHeaderTimeout: 10 * time.Second}
	l := listen(t)
	go func() { _ = srv.Serve(l) }() // it ends with the test
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String()
}

// h2spec returns the results by the names of the cases; nil is a pass.
func h2spec(t *testing.T, address string) map[string]error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Port: n, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true}
	results := map[string]error{}
	for _, g := range []*spec.TestGroup{generic.Spec(), spechttp2.Spec(), hpack.Spec()} {
		g.Test(c)
		collect(g, results)
	}
	return results
}

func collect(g *spec.TestGroup, results map[string]error) {
	for _, c := range append(append([]*spec.TestCase{}, g.Tests...), g.StrictTests...) {
		if c.Result == nil || c.Result.Skipped {
			continue
		}
		results[g.ID()+" "+g.Name+": "+c.Desc] = c.Result.Error
	}
	for _, sub := range g.Groups {
		collect(sub, results)
	}
}
