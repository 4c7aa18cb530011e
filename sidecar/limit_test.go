package sidecar

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"txmesh/interceptor/proxy"
)

func TestConnectionsBeyondTheLimitAreTurnedAway(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int32
	l := limit(tcp, 1, crowded, func() { refused.Add(1) })
	defer l.Close()
	accepted := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() net.Conn {
		c, err := net.Dial("tcp", tcp.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	dial()
	first := <-accepted
	got, err := io.ReadAll(dial())
	if err != nil || string(got) != crowded || refused.Load() != 1 {
		t.Errorf("the second got %q, %v, %d refused; want %q and 1", got, err, refused.Load(), crowded)
	}
	for range 2 { // closing twice frees one slot
		if err := first.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	dial()
	defer (<-accepted).Close()
	if got, err := io.ReadAll(dial()); err != nil || string(got) != crowded || refused.Load() != 2 {
		t.Errorf("one too many again: %q, %v, %d refused", got, err, refused.Load())
	}
	if l.Close(); len(accepted) != 0 {
		t.Error("more connections than slots were accepted")
	}
}

// The answer is the proxy's own, but for the remedy that names the key.
func TestTurnedAwayIsTheRowOfTheTable(t *testing.T) {
	_, body, _ := strings.Cut(crowded, "\r\n\r\n")
	var got struct {
		Title, Code string
		Status      int
	}
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	for _, c := range proxy.Codes() {
		if c.Code == crowdedCode && (got.Title != c.Title || got.Code != c.Code || got.Status != c.Status) {
			t.Errorf("got %+v, want %+v", got, c)
		}
	}
}
