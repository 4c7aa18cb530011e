package echo

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"

	"golang.org/x/net/http2"
)

const (
	frameBytes      = 16 << 10
	windowDefault   = 65535
	connWindowBytes = 1 << 30
)

// GRPC serves HTTP/2 in clear text until the listener is closed. Every unary call is answered with its own message. It is
// no server for anything else: header fields are not even decoded, because the answer does not depend on them.
func GRPC(l net.Listener) error {
	for {
		nc, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer nc.Close()
			_ = newConn(nc).serve() // it ends when the other side goes away
		}()
	}
}

// conn is one connection, with all its streams in the hands of one goroutine.
type conn struct {
	net      net.Conn
	in       *bufio.Reader
	out      bytes.Buffer // frames that are not sent yet
	framer   *http2.Framer
	streams  map[uint32]*stream
	waiting  []*stream // whose answer waits for a window
	free     []*stream
	send     int // what the other side still takes of all streams
	initial  int // and of a new stream
	received int // since the window of the connection was renewed
}

// stream is one call.
type stream struct {
	id       uint32
	message  []byte
	answered int // bytes of it
	send     int
	complete bool // the message is here
}

// The answer's header and trailers as HPACK without a dynamic table: fields of the static table by their number, others
// in full (RFC 7541, 6.2.2).
func headerBlock() []byte {
	return append([]byte{0x88, 0x0f, 0x10, byte(len("application/grpc"))}, "application/grpc"...) // :status 200, content-type
}

func trailerBlock() []byte {
	return append(append([]byte{0x00, byte(len("grpc-status"))}, "grpc-status"...), 1, '0')
}

func newConn(nc net.Conn) *conn {
	c := &conn{net: nc, in: bufio.NewReaderSize(nc, 2*frameBytes), streams: map[uint32]*stream{}, send: windowDefault, initial: windowDefault}
	c.framer = http2.NewFramer(&c.out, c.in)
	c.framer.SetReuseFrames()
	return c
}

func (c *conn) serve() error {
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.in, preface); err != nil || string(preface) != http2.ClientPreface {
		return fmt.Errorf("not HTTP/2: %q: %w", preface, err)
	}
	if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 2 * bodyBytesMax}); err != nil {
		return err
	}
	if err := c.framer.WriteWindowUpdate(0, connWindowBytes-windowDefault); err != nil {
		return err
	}
	for {
		if c.in.Buffered() == 0 && c.out.Len() > 0 { // nothing more to answer at once
			if _, err := c.net.Write(c.out.Bytes()); err != nil {
				return err
			}
			c.out.Reset()
		}
		f, err := c.framer.ReadFrame()
		if err != nil {
			return err
		}
		if err := c.take(f); err != nil {
			return err
		}
	}
}

func (c *conn) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.HeadersFrame:
		s := c.streams[f.StreamID]
		if s == nil {
			s = c.open(f.StreamID)
		}
		return c.end(s, f.StreamEnded())
	case *http2.DataFrame:
		return c.data(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.WindowUpdateFrame:
		if f.StreamID == 0 {
			c.send += int(f.Increment)
		} else if s := c.streams[f.StreamID]; s != nil {
			s.send += int(f.Increment)
		}
		return c.resume()
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.framer.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		if s := c.streams[f.StreamID]; s != nil {
			s.complete = false // resume passes over it
			delete(c.streams, f.StreamID)
		}
	}
	return nil
}

func (c *conn) open(id uint32) *stream {
	s := &stream{}
	if last := len(c.free) - 1; last >= 0 {
		s, c.free = c.free[last], c.free[:last]
	}
	*s = stream{id: id, message: s.message[:0], send: c.initial}
	c.streams[id] = s
	return s
}

func (c *conn) data(f *http2.DataFrame) error {
	if c.received += int(f.Length); c.received > connWindowBytes/2 {
		if err := c.framer.WriteWindowUpdate(0, uint32(c.received)); err != nil {
			return err
		}
		c.received = 0
	}
	s := c.streams[f.StreamID]
	if s == nil {
		return nil // it was reset
	}
	if len(s.message)+len(f.Data()) > bodyBytesMax+16 {
		return fmt.Errorf("a message of more than %d bytes", bodyBytesMax)
	}
	s.message = append(s.message, f.Data()...)
	return c.end(s, f.StreamEnded())
}

// end answers once the call is complete.
func (c *conn) end(s *stream, ended bool) error {
	if !ended {
		return nil
	}
	s.complete = true
	if err := c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: headerBlock(), EndHeaders: true}); err != nil {
		return err
	}
	done, err := c.answer(s)
	if err == nil && !done {
		c.waiting = append(c.waiting, s)
	}
	return err
}

// answer sends as much of the answer as the windows allow.
func (c *conn) answer(s *stream) (done bool, err error) {
	for s.answered < len(s.message) {
		n := min(len(s.message)-s.answered, c.send, s.send, frameBytes)
		if n <= 0 {
			return false, nil
		}
		if err := c.framer.WriteData(s.id, false, s.message[s.answered:s.answered+n]); err != nil {
			return false, err
		}
		s.answered, c.send, s.send = s.answered+n, c.send-n, s.send-n
	}
	delete(c.streams, s.id)
	c.free = append(c.free, s)
	return true, c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: s.id, BlockFragment: trailerBlock(), EndHeaders: true, EndStream: true})
}

// resume goes on with the answers that waited for a window.
func (c *conn) resume() error {
	still := c.waiting[:0]
	for _, s := range c.waiting {
		if !s.complete {
			continue
		}
		done, err := c.answer(s)
		if err != nil {
			return err
		}
		if !done {
			still = append(still, s)
		}
	}
	c.waiting = still
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
		for _, s := range c.streams {
			s.send += int(v) - c.initial
		}
		c.initial = int(v)
	}
	if err := c.framer.WriteSettingsAck(); err != nil {
		return err
	}
	return c.resume()
}
