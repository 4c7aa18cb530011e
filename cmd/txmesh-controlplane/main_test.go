package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"txmesh/controlplane"
)

func TestVersionAndHelpNeedNoConfiguration(t *testing.T) {
	for flag, want := range map[string]string{"--version": "txmesh-controlplane unknown\n", "--help": "txmesh-controlplane hands out policies"} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{flag}, nil, &out, io.Discard); err != nil || !strings.HasPrefix(out.String(), want) {
			t.Errorf("run(%s) = %v, prints %q, want %q", flag, err, out.String(), want)
		}
	}
}

func TestWrongConfigurationEndsBeforeAnythingStarts(t *testing.T) {
	var out bytes.Buffer
	err := run(t.Context(), nil, nil, &out, io.Discard)
	want := "config: policies: is missing; name a directory with policies; it may be empty"
	if err == nil || err.Error() != want || out.Len() != 0 {
		t.Errorf("run = %v, prints %q, want %s", err, out.String(), want)
	}
}

// The whole process but its signals: it tells its ports in one line, serves, and ends when it is told to.
func TestProcessTellsItsPortsAndEnds(t *testing.T) {
	t.Setenv("GOGC", "100") // the process under test must not change the collector of this one
	t.Setenv("GOMEMLIMIT", "off")
	ctx, stop := context.WithCancel(t.Context())
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, []string{"--policies", t.TempDir(), "--data-dir", filepath.Join(t.TempDir(), "data"), "--log-format=text"},
			[]string{"TXMESH_LISTEN=127.0.0.1:0", "TXMESH_API=127.0.0.1:0"}, w, t.Output())
	}()
	line, err := bufio.NewReader(r).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var a controlplane.Addresses
	if err := json.Unmarshal(line, &a); err != nil || !a.Ready || len(a.Fingerprint) != 64 {
		t.Fatalf("ready line %s: %v", line, err)
	}
	res, err := http.Get("http://" + a.API + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != 200 {
		t.Errorf("healthz = %d", res.StatusCode)
	}
	stop()
	if err := <-done; err != nil {
		t.Errorf("run = %v", err)
	}
}
