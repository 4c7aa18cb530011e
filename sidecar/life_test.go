package sidecar

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestReadinessFlipsBeforeTheEnd(t *testing.T) {
	app := newService(t)
	cfg := config(t, "a/b", app.address())
	cfg.GracePeriod = time.Minute
	s := start(t, cfg)
	if res, text := call(t, "GET", "http://"+s.API+"/readyz", ""); res.StatusCode != 200 || text != `{"status":"ready"}`+"\n" {
		t.Errorf("readyz = %d %s", res.StatusCode, text)
	}
	s.stop()
	eventually(t, "it is draining", func() bool {
		res, text := call(t, "GET", "http://"+s.API+"/readyz", "")
		return res.StatusCode == 503 && strings.Contains(text, `"detail":"draining"`)
	})
	// The application is still there: requests are served as before.
	if res, _ := call(t, "POST", "http://"+s.Inbound+"/x", ""); res.StatusCode != 201 {
		t.Errorf("request while draining = %d, want 201", res.StatusCode)
	}
	app.Close()
	if err := s.end(); err != nil {
		t.Errorf("Run = %v, want nil: the application is gone and nothing is open", err)
	}
}

func TestTransactionOpenAtTheEndOfTheGracePeriodIsListed(t *testing.T) {
	s := start(t, config(t, "a/b", newService(t).address()))
	_, text := s.api("POST", "/v1/transactions", "")
	var begun struct{ ID string }
	unmarshal(t, text, &begun)
	err := s.end()
	want := "stopped with 1 transactions open; start again on the same data directory to end them: " + begun.ID
	if work, ok := errors.AsType[*OpenWork](err); !ok || work.Error() != want {
		t.Errorf("Run = %v, want %s", err, want)
	}
}

func TestTokenIsMadeOnceAndPrivate(t *testing.T) {
	cfg := config(t, "a/b", newService(t).address())
	first := start(t, cfg)
	info, err := os.Stat(first.TokenFile)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || filepath.Dir(first.TokenFile) != cfg.DataDir {
		t.Errorf("token file = %s %v, want one with mode 0600 in %s", first.TokenFile, info.Mode(), cfg.DataDir)
	}
	if err := first.end(); err != nil {
		t.Fatal(err)
	}
	if second := start(t, cfg); second.token != first.token || len(second.token) < 32 {
		t.Errorf("token after restart = %q, was %q", second.token, first.token)
	}
}

func TestStartFailsWithClearErrors(t *testing.T) {
	app := newService(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	running := start(t, config(t, "a/b", app.address()))
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"port in use", func(c *Config) { c.API = busy.Addr().String() }, "open api port: listen tcp " + busy.Addr().String() + ": bind: address already in use"},
		{"short secret", func(c *Config) { c.MeshSecretFile = short }, "mesh-secret-file: " + short + " holds fewer than 16 characters: make one with `openssl rand -hex 32`"},
		{"no secret", func(c *Config) { c.MeshSecretFile = "/nonexistent" }, "mesh-secret-file: open /nonexistent: no such file or directory"},
		{"no policy", func(c *Config) { c.Policies = []string{"/nonexistent/p.yaml"} }, "policies:\n"},
		{"store in use", func(c *Config) { c.DataDir = running.cfg.DataDir }, "another process has it open"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cfg := config(t, "a/b", app.address())
			tt.change(&cfg)
			s, err := New(cfg, "test", running.log)
			if err == nil {
				err = s.Run(t.Context(), func(Addresses) { t.Error("it became ready") })
				err = errors.Join(err, s.Close())
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("start = %v, want %s", err, tt.want)
			}
		})
	}
}

func TestReadyLine(t *testing.T) {
	cfg := config(t, "a/b", newService(t).address())
	cfg.Upstreams = []Upstream{{Service: "a/c", Listen: "127.0.0.1:0", To: []string{"127.0.0.1:1"}}}
	s := start(t, cfg)
	line, err := json.Marshal(s.Addresses)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"ready":true,"owner":"` + s.Owner + `","service":"a/b","inbound":"` + s.Inbound + `","outbound":"` + s.Outbound +
		`","api":"` + s.API + `","peer":"` + s.Peer + `","upstreams":{"a/c":"` + s.Upstreams["a/c"] + `"},"token_file":"` + s.TokenFile + `"}`
	if string(line) != want {
		t.Errorf("ready line = %s, want %s", line, want)
	}
	for _, address := range []string{s.Inbound, s.Outbound, s.API, s.Peer, s.Upstreams["a/c"]} {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Errorf("address of the ready line: %v", err)
			continue
		}
		conn.Close()
	}
}

func TestMetricsAreThoseOfTheTable(t *testing.T) {
	b := newBank(t)
	call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	var text string
	eventually(t, "the transfer is counted", func() bool {
		_, text = call(t, "GET", "http://"+b.at.API+"/metrics", "")
		return strings.Contains(text, `txmesh_transactions_total{end="committed",mode="intercepted"} 1`)
	})
	kinds := map[string]string{}
	tags := map[string][]string{}
	for line := range strings.SplitSeq(text, "\n") {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" && strings.HasPrefix(f[2], "txmesh_") {
			kinds[f[2]] = f[3]
		} else if name, rest, tagged := strings.Cut(line, "{"); tagged && strings.HasPrefix(line, "txmesh_") {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				name = strings.TrimSuffix(name, suffix)
			}
			rest, _, _ = strings.Cut(rest, "}")
			tags[name] = nil
			for pair := range strings.SplitSeq(rest, ",") {
				if tag, _, _ := strings.Cut(pair, "="); tag != "le" {
					tags[name] = append(tags[name], tag)
				}
			}
			slices.Sort(tags[name])
		}
	}
	wantKinds, wantTags := map[string]string{}, map[string][]string{}
	for _, m := range metricTable() {
		wantKinds[m.name] = m.kind
		if len(m.tags) > 0 {
			wantTags[m.name] = slices.Sorted(slices.Values(m.tags))
		}
	}
	if diff := cmp.Diff(wantKinds, kinds); diff != "" {
		t.Errorf("metrics differ (-table +served):\n%s", diff)
	}
	if diff := cmp.Diff(wantTags, tags); diff != "" {
		t.Errorf("tags differ (-table +served):\n%s", diff)
	}
}

func TestStuckTransactionShowsItsAge(t *testing.T) {
	b := newBank(t)
	// The undo meets a service that refuses it.
	b.transfers.then = func(r *http.Request) int {
		callOn(t, r, "http://"+b.at.Upstreams["bank/accounts"]+"/orders", "tx-undo", "POST /refuse")
		return 500
	}
	b.accounts.then = func(r *http.Request) int {
		if r.URL.Path == "/refuse" {
			return 409
		}
		return 201
	}
	res, text := call(t, "POST", "http://"+b.at.Inbound+"/transfers", "{}")
	if res.StatusCode != 500 || res.Header.Get("tx-status") != "stuck" || !strings.Contains(text, "undo of branch 0 (inline): answered 409") {
		t.Errorf("transfer = %d %v %s, want stuck", res.StatusCode, res.Header, text)
	}
	eventually(t, "its age shows", func() bool {
		_, text := call(t, "GET", "http://"+b.at.API+"/metrics", "")
		return strings.Contains(text, "txmesh_open_transactions 1\n") && strings.Contains(text, `txmesh_halted_total{op="undo"} 1`) &&
			!strings.Contains(text, "txmesh_oldest_non_terminal_seconds 0\n")
	})
	id := res.Header.Get("tx-id")
	if status, text := b.at.api("POST", "/v1/transactions/"+id+"/branches/0/undo/skip", `{"by":"ops","why":"done by hand"}`); status != 200 {
		t.Errorf("skip = %d %s", status, text)
	}
	eventually(t, "nothing is open", func() bool {
		_, text := call(t, "GET", "http://"+b.at.API+"/metrics", "")
		return strings.Contains(text, "txmesh_open_transactions 0\n") && strings.Contains(text, "txmesh_oldest_non_terminal_seconds 0\n")
	})
}
