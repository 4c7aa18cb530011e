package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func newFramer(w io.Writer, r io.Reader) *http2.Framer {
	f := http2.NewFramer(w, bufio.NewReaderSize(r, 16<<10))
	f.SetReuseFrames()
	return f
}

// unaryServer answers every call with a message of the same size: frames and nothing else.
func unaryServer(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serveUnary(conn)
		}
	}()
	return l.Addr().String()
}

// serveUnary ends with its connection: an error is the client's going away, which sees it too.
func serveUnary(conn net.Conn) {
	defer conn.Close()
	br := bufio.NewReaderSize(conn, 16<<10)
	if _, err := io.ReadFull(br, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	var out, block bytes.Buffer
	fr := http2.NewFramer(&out, br)
	fr.SetReuseFrames()
	enc := hpack.NewEncoder(&block)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1000})
	_ = fr.WriteWindowUpdate(0, 1<<28)
	msg, got := make([]byte, bodyBytes), uint32(0)
	headers := func(id uint32, end bool, fields ...string) {
		block.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end})
	}
	for {
		if br.Buffered() == 0 && out.Len() > 0 {
			if _, err := conn.Write(out.Bytes()); err != nil {
				return
			}
			out.Reset()
		}
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				_ = fr.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				_ = fr.WritePing(true, f.Data)
			}
		case *http2.DataFrame:
			if got += f.Length; got > 1<<20 {
				_ = fr.WriteWindowUpdate(0, got)
				got = 0
			}
			if f.StreamEnded() {
				headers(f.StreamID, false, ":status", "200", "content-type", "application/grpc")
				_ = fr.WriteData(f.StreamID, false, msg)
				headers(f.StreamID, true, "grpc-status", "0", "grpc-message", "")
			}
		}
	}
}
