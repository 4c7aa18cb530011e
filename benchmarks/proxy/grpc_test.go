package proxy

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"txmesh/interceptor/proxy"
)

// TestUnaryThroughput measures gRPC unary calls through the proxy against direct ones, in turns. It runs when TXMESH_BENCH
// says for how long each turn lasts. Client and server are frames and nothing else, so that the proxy is what is measured.
func TestUnaryThroughput(t *testing.T) {
	turn, err := time.ParseDuration(os.Getenv("TXMESH_BENCH"))
	if err != nil {
		turn = 50 * time.Millisecond // a smoke run: the figures mean nothing
	}
	backend := unaryServer(t)
	ours := untaggedHTTP2(t, backend, nil)
	var ds, xs, ratios []float64
	for range rounds {
		ds = append(ds, unaryRate(t, backend, turn))
		xs = append(xs, unaryRate(t, ours, turn))
		ratios = append(ratios, xs[len(xs)-1]/ds[len(ds)-1])
	}
	t.Logf("unary calls/s, medians of %d turns of %v, %d connections, %d-byte messages both ways", rounds, turn, connections, bodyBytes)
	t.Logf("direct           %8.0f  %v", median(ds), spread(ds, "%.0f"))
	t.Logf("txmesh untagged  %8.0f  %v", median(xs), spread(xs, "%.0f"))
	t.Logf("ratio of turns   %8.2f  %v", median(ratios), spread(ratios, "%.2f"))
}

// BenchmarkUnary counts allocations of one call after the other on one connection.
func BenchmarkUnary(b *testing.B) {
	backend := unaryServer(b)
	for _, path := range []struct{ name, address string }{{"direct", backend}, {"txmesh", untaggedHTTP2(b, backend, nil)}, {"txmesh-gate", untaggedHTTP2(b, backend, lookGate{})}} {
		b.Run(path.name, func(b *testing.B) {
			c := dialUnary(b, path.address)
			b.ReportAllocs()
			for b.Loop() {
				if err := c.call(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func untaggedHTTP2(t testing.TB, backend string, gate proxy.Gate) string {
	p, err := proxy.NewInbound(proxy.Options{Gate: gate}, "bench/backend", backend)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.Serve(l) }() // Shutdown ends it
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = p.Shutdown(ctx) // idle connections of clients may be cut
	})
	return l.Addr().String()
}

func unaryRate(t *testing.T, address string, turn time.Duration) float64 {
	var n atomic.Int64
	var all sync.WaitGroup
	began := time.Now()
	for range connections {
		c := dialUnary(t, address)
		all.Go(func() {
			defer c.conn.Close()
			for time.Since(began) < turn {
				if err := c.call(); err != nil {
					t.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	all.Wait()
	return float64(n.Load()) / time.Since(began).Seconds()
}

// unary is a client of gRPC that makes one call at a time, with the frames that libraries send.
type unary struct {
	conn net.Conn
	fr   *http2.Framer
	out  bytes.Buffer
	enc  *hpack.Encoder
	blk  bytes.Buffer
	msg  []byte
	id   uint32
	got  int
}

func dialUnary(t testing.TB, address string) *unary {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	c := &unary{conn: conn, id: 1, msg: make([]byte, bodyBytes)}
	c.enc = hpack.NewEncoder(&c.blk)
	c.fr = newFramer(&c.out, conn)
	c.out.WriteString(http2.ClientPreface)
	must(t, c.fr.WriteSettings())
	must(t, c.flush())
	return c
}

func must(t testing.TB, err error) {
	if err != nil {
		t.Fatal(err)
	}
}

func (c *unary) flush() error {
	_, err := c.conn.Write(c.out.Bytes())
	c.out.Reset()
	return err
}

func (c *unary) call() error {
	c.blk.Reset()
	for _, f := range []hpack.HeaderField{{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"},
		{Name: ":path", Value: "/bench.Service/Unary"}, {Name: ":authority", Value: "bench:80"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "user-agent", Value: "grpc-bench/1.0"}, {Name: "te", Value: "trailers"}} {
		if err := c.enc.WriteField(f); err != nil {
			return err
		}
	}
	if err := c.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: c.id, BlockFragment: c.blk.Bytes(), EndHeaders: true}); err != nil {
		return err
	}
	if err := c.fr.WriteData(c.id, true, c.msg); err != nil {
		return err
	}
	if c.got >= 32<<10 {
		if err := c.fr.WriteWindowUpdate(0, uint32(c.got)); err != nil {
			return err
		}
		c.got = 0
	}
	if err := c.flush(); err != nil {
		return err
	}
	n := 0
	for {
		f, err := c.fr.ReadFrame()
		if err != nil {
			return err
		}
		switch f := f.(type) {
		case *http2.DataFrame:
			n += len(f.Data())
			c.got += len(f.Data())
		case *http2.HeadersFrame:
			if f.StreamEnded() {
				c.id += 2
				if n != bodyBytes {
					return fmt.Errorf("got %d bytes, want %d", n, bodyBytes)
				}
				return nil
			}
		case *http2.SettingsFrame:
			if !f.IsAck() {
				if err := c.fr.WriteSettingsAck(); err != nil {
					return err
				}
			}
		case *http2.RSTStreamFrame, *http2.GoAwayFrame:
			return fmt.Errorf("got %v", f)
		}
	}
}
