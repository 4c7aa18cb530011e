package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// smallDisk mounts a file system of its own where the sidecar of a node keeps its journal.
func (n *node) smallDisk(size string) {
	t := n.m.t
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system that can be filled; the same with a faked statfs is in txlog/badger")
	}
	n.m.must(os.Mkdir(n.journal(), 0o700))
	if err := syscall.Mount("tmpfs", n.journal(), "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("this machine does not let root mount a tmpfs (%v); the same with a faked statfs is in txlog/badger", err)
	}
	t.Cleanup(func() {
		n.sidecar.Kill()
		if err := syscall.Unmount(n.journal(), 0); err != nil {
			t.Error(err)
		}
	})
}

// fill writes until nothing more fits, and gives the file.
func (n *node) fill() string {
	n.m.t.Helper()
	path := filepath.Join(n.journal(), "somebody-else")
	f, err := os.Create(path)
	n.m.must(err)
	defer f.Close()
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else {
			n.m.must(err)
		}
	}
	return path
}

// A full disk: new transactions get 503, untagged traffic passes, open ones end, also after a kill -9.
func TestOpenTransactionsEndOnAFullDisk(t *testing.T) {
	t.Parallel()
	m := newMesh(t, shopPolicy, member{name: "deep"}, member{name: "third", bare: true},
		member{name: "stock", calls: []string{"deep"}}, member{name: "shop", calls: []string{"stock", "third"}})
	s := &shop{mesh: m, t: t, shop: m.nodes["shop"], stock: m.nodes["stock"], third: m.nodes["third"], deep: m.nodes["deep"]}
	s.shop.smallDisk("160m")
	m.start()
	a, b := s.begin("10m"), s.begin("10m")
	for _, x := range []begun{a, b} {
		if r := s.call("POST", "http://"+s.shop.to["stock"]+"/reserve", "{}", "Tx-Context", x.Context); r.status != 201 {
			t.Fatalf("call = %d %s", r.status, r.body)
		}
	}
	file := s.shop.fill()
	var r reply
	s.eventually("new transactions are refused", func() (bool, string) {
		r = s.shop.root("/orders", "{}")
		return r.status == 503, r.body
	})
	if r.header.Get("Tx-Error") != "TXM0123" || r.header.Get("Retry-After") != "1" || !strings.Contains(r.body, "free space on its disk") {
		t.Errorf("order = %d %s %v, want TXM0123 that says what to do", r.status, r.body, r.header)
	}
	if r := s.shop.admin("GET", "/readyz", ""); r.status != 503 || !strings.Contains(r.body, "free") {
		t.Errorf("readyz = %d %s, want 503", r.status, r.body)
	}
	if r := s.shop.admin("POST", "/v1/transactions", "{}"); r.status != 503 || r.header.Get("Tx-Error") != "TXM0308" {
		t.Errorf("begin over the API = %d %s, want 503 TXM0308", r.status, r.body)
	}
	before := len(s.shop.effects())
	if r := s.shop.root("/untagged", "{}"); r.status != 201 || len(s.shop.effects()) != before+1 {
		t.Errorf("untagged request = %d %s, want 201", r.status, r.body)
	}
	if r := s.shop.admin("POST", "/v1/transactions/"+a.ID+"/commit", ""); r.status != 200 {
		t.Errorf("commit on a full disk = %d %s", r.status, r.body)
	}
	s.shop.reaches(a.ID, "committed")
	s.shop.crash()
	if r := s.shop.admin("POST", "/v1/transactions/"+b.ID+"/abort", ""); r.status != 200 {
		t.Errorf("abort on a full disk after the kill = %d %s", r.status, r.body)
	}
	s.shop.reaches(b.ID, "aborted")
	s.stock.does("POST /reserve 201, POST /reserve 201, PUT /reserve/e1 200, DELETE /reserve/e2 200")
	s.must(os.Remove(file))
	s.eventually("new transactions are taken again", func() (bool, string) {
		r := s.shop.root("/orders", "{}")
		return r.status == 201 && r.header.Get("Tx-Status") == "committed", r.body
	})
}
