package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// GRPC says what is sent over HTTP/2 in clear text: unary calls, one at a time on a connection.
type GRPC struct {
	Address string
	Path    string // such as /bench.Echo/Call
	Body    int    // bytes in field 1 of the message, both ways: the server echoes
	// Prepare is asked for one more field of the metadata before each call; nil: none.
	Prepare func(conn int) (name, value string, err error)
}

const (
	// windowBytes is how much one answer may have, so that no stream's window is ever renewed.
	windowBytes = 1 << 20
	// connWindowBytes is what all answers of a connection may have until it is renewed.
	connWindowBytes = 1 << 30
	frameBytes      = 16 << 10 // HTTP/2's default
	windowDefault   = 65535    // HTTP/2's default
	streamMax       = 1<<31 - 1
)

// Dial opens a connection and sends the preface.
func (o GRPC) Dial(ctx context.Context, conn int) (Caller, error) {
	if o.Body > windowBytes/2 {
		return nil, fmt.Errorf("a body of %d bytes: want at most %d", o.Body, windowBytes/2)
	}
	nc, err := dial(ctx, o.Address)
	if err != nil {
		return nil, err
	}
	c := &grpc{GRPC: o, conn: conn, net: nc, content: newContent(conn, o.Body), connSend: windowDefault, initial: windowDefault, stream: -1}
	c.message = binary.AppendUvarint(append(make([]byte, 5), 1<<3|2), uint64(len(c.content.bytes))) // field 1, bytes
	c.number = len(c.message)
	c.message = append(c.message, c.content.bytes...)
	binary.BigEndian.PutUint32(c.message[1:], uint32(len(c.message)-5))
	c.framer = http2.NewFramer(&c.out, bufio.NewReaderSize(nc, 2*frameBytes))
	c.framer.SetReuseFrames()
	c.encoder = hpack.NewEncoder(&c.block)
	c.decoder = hpack.NewDecoder(4096, c.field)
	c.out.WriteString(http2.ClientPreface)
	// Writes into a buffer do not fail.
	_ = c.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: windowBytes})
	_ = c.framer.WriteWindowUpdate(0, connWindowBytes-windowDefault)
	return c, nil
}

type grpc struct {
	GRPC
	conn    int
	net     *callConn
	content *content
	message []byte // with gRPC's prefix
	number  int    // where the content begins in it
	name    string // of the field that Prepare gave
	value   string

	framer  *http2.Framer
	out     bytes.Buffer // frames that are not sent yet
	encoder *hpack.Encoder
	decoder *hpack.Decoder
	block   bytes.Buffer // of encoder

	connSend, streamSend int // what the other side still takes, of all streams and of this one
	initial              int // what it takes of a new stream
	received             int // since the window of the connection was renewed

	stream  int64 // of the current call
	sent    int   // bytes of the message
	got     int   // bytes of the answer
	ending  bool  // the header block that is being read ends the stream
	ended   bool
	failure error // what the answer's header fields say
	status  string
}

// Prepare implements Caller.
func (c *grpc) Prepare() error {
	if c.GRPC.Prepare == nil {
		return nil
	}
	var err error
	c.name, c.value, err = c.GRPC.Prepare(c.conn)
	return err
}

// Call implements Caller.
func (c *grpc) Call() error {
	c.stream += 2
	if c.stream > streamMax {
		return Failure("connection has no streams left")
	}
	copy(c.message[c.number:], c.content.next())
	c.sent, c.got, c.ending, c.ended, c.failure, c.status = 0, 0, false, false, nil, ""
	c.streamSend = c.initial
	c.sendHeaders()
	for {
		c.sendMessage()
		if c.out.Len() > 0 {
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
		if c.ended {
			return c.verdict()
		}
	}
}

func (c *grpc) sendHeaders() {
	c.block.Reset()
	for _, f := range [...]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: c.Path}, {Name: ":authority", Value: "echo.bench"},
		{Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"}, {Name: c.name, Value: c.value},
	} {
		if f.Name != "" {
			_ = c.encoder.WriteField(f) // into a buffer
		}
	}
	_ = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(c.stream), BlockFragment: c.block.Bytes(), EndHeaders: true}) // into a buffer
}

// sendMessage puts into out what the windows of the other side allow.
func (c *grpc) sendMessage() {
	for c.sent < len(c.message) {
		n := min(len(c.message)-c.sent, c.connSend, c.streamSend, frameBytes)
		if n <= 0 {
			return
		}
		last := c.sent+n == len(c.message)
		_ = c.framer.WriteData(uint32(c.stream), last, c.message[c.sent:c.sent+n]) // into a buffer
		c.sent, c.connSend, c.streamSend = c.sent+n, c.connSend-n, c.streamSend-n
	}
}

// take takes one frame.
func (c *grpc) take(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return c.data(f)
	case *http2.HeadersFrame:
		c.ending = f.StreamEnded()
		return c.headers(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return c.headers(f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.WindowUpdateFrame:
		switch int64(f.StreamID) {
		case 0:
			c.connSend += int(f.Increment)
		case c.stream:
			c.streamSend += int(f.Increment)
		}
	case *http2.PingFrame:
		if !f.IsAck() {
			return c.framer.WritePing(true, f.Data)
		}
	case *http2.RSTStreamFrame:
		if int64(f.StreamID) == c.stream {
			return Failure("stream reset: " + f.ErrCode.String())
		}
	case *http2.GoAwayFrame:
		return Failure("GOAWAY: " + f.ErrCode.String())
	}
	return nil
}

// data compares a piece of the answer with what was sent.
func (c *grpc) data(f *http2.DataFrame) error {
	if c.received += int(f.Length); c.received > connWindowBytes/2 {
		_ = c.framer.WriteWindowUpdate(0, uint32(c.received)) // into a buffer
		c.received = 0
	}
	piece := f.Data()
	if int64(f.StreamID) != c.stream || c.got+len(piece) > len(c.message) || !bytes.Equal(piece, c.message[c.got:c.got+len(piece)]) {
		return errBody
	}
	c.got += len(piece)
	c.ended = f.StreamEnded()
	return nil
}

func (c *grpc) headers(block []byte, last bool) error {
	if _, err := c.decoder.Write(block); err != nil {
		return err
	}
	if !last {
		return nil
	}
	c.ended = c.ending
	return c.decoder.Close()
}

// field is called with each header field and trailer of the answer.
func (c *grpc) field(f hpack.HeaderField) {
	switch f.Name {
	case ":status":
		if f.Value != "200" {
			c.failure = Failure("status " + f.Value)
		}
	case "grpc-status":
		c.status = f.Value
	}
}

func (c *grpc) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
		c.streamSend += int(v) - c.initial
		c.initial = int(v)
	}
	if v, ok := f.Value(http2.SettingHeaderTableSize); ok {
		c.encoder.SetMaxDynamicTableSizeLimit(v)
	}
	return c.framer.WriteSettingsAck()
}

// verdict says what became of a call whose answer has ended.
func (c *grpc) verdict() error {
	switch {
	case c.failure != nil:
		return c.failure
	case c.status != "0":
		return Failure("grpc-status " + strconv.Quote(c.status))
	case c.got != len(c.message):
		return Failure(fmt.Sprintf("answer has %d bytes, want %d", c.got, len(c.message)))
	case c.sent != len(c.message):
		return Failure("answer before the end of the request")
	}
	return nil
}

// Close implements Caller.
func (c *grpc) Close() error { return c.net.Close() }
