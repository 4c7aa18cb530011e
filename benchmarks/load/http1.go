package load

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strconv"
)

// HTTP1 says what is sent over HTTP/1.1.
type HTTP1 struct {
	Address string
	Path    string
	Body    int // bytes of the body, both ways: the server echoes
	// Prepare is asked for one more header line, with its line end, before each call; nil: none.
	Prepare func(conn int) (header string, err error)
}

// headBytesMax bounds the head of an answer.
const headBytesMax = 16 << 10

// Dial opens a connection.
func (o HTTP1) Dial(ctx context.Context, conn int) (Caller, error) {
	nc, err := dial(ctx, o.Address)
	if err != nil {
		return nil, err
	}
	c := &http1{HTTP1: o, conn: conn, net: nc, content: newContent(conn, o.Body), buf: make([]byte, headBytesMax)}
	c.setHeader("")
	return c, nil
}

// dial opens a connection that fails once ctx ends.
func dial(ctx context.Context, address string) (*callConn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if at, ok := ctx.Deadline(); ok {
		if err := nc.SetDeadline(at); err != nil {
			return nil, err
		}
	}
	return &callConn{nc, context.AfterFunc(ctx, func() { nc.Close() })}, nil
}

type callConn struct {
	net.Conn
	stop func() bool
}

func (c *callConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

type http1 struct {
	HTTP1
	conn    int
	net     *callConn
	content *content
	header  string
	request []byte // head and body
	head    int    // bytes of the head
	buf     []byte // of the answer
}

func (c *http1) setHeader(line string) {
	c.header = line
	head := "POST " + c.Path + " HTTP/1.1\r\nHost: echo.bench\r\nContent-Type: application/octet-stream\r\nContent-Length: " +
		strconv.Itoa(len(c.content.bytes)) + "\r\n" + line + "\r\n"
	c.request, c.head = append(append(c.request[:0], head...), c.content.bytes...), len(head)
}

// Prepare implements Caller.
func (c *http1) Prepare() error {
	if c.HTTP1.Prepare == nil {
		return nil
	}
	line, err := c.HTTP1.Prepare(c.conn)
	if err == nil && line != c.header {
		c.setHeader(line)
	}
	return err
}

// Call implements Caller.
func (c *http1) Call() error {
	copy(c.request[c.head:], c.content.next())
	if _, err := c.net.Write(c.request); err != nil {
		return err
	}
	have := 0
	for {
		n, err := c.net.Read(c.buf[have:])
		if err != nil {
			return err
		}
		have += n
		head, status, length, err := parseHead(c.buf[:have])
		if err != nil {
			return err
		}
		if head > 0 {
			return c.body(c.buf[head:have], status, length)
		}
		if have == len(c.buf) {
			return Failure("answer's head is too large")
		}
	}
}

// body compares the body, of which some was read with the head, with what was sent.
func (c *http1) body(got []byte, status int, length int64) error {
	want := c.content.bytes
	if status != 200 {
		return Failure("status " + strconv.Itoa(status))
	}
	if length != int64(len(want)) {
		return Failure(fmt.Sprintf("answer's body has %d bytes, want %d", length, len(want)))
	}
	for {
		if len(got) > len(want) || !bytes.Equal(got, want[:len(got)]) {
			return errBody
		}
		if want = want[len(got):]; len(want) == 0 {
			return nil
		}
		n, err := c.net.Read(c.buf)
		if err != nil {
			return err
		}
		got = c.buf[:n]
	}
}

// Close implements Caller.
func (c *http1) Close() error { return c.net.Close() }

// parseHead reads the head of an answer with a Content-Length; size is 0 while its end is not there yet.
func parseHead(b []byte) (size, status int, length int64, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, 0, 0, nil
	}
	line, rest, _ := bytes.Cut(b[:end], []byte("\r\n"))
	if len(line) < 12 || string(line[:9]) != "HTTP/1.1 " || len(line) > 12 && line[12] != ' ' || bytes.ContainsAny(line, "\r\n") {
		return 0, 0, 0, Failure("answer does not begin with a status line of HTTP/1.1")
	}
	code, err := strconv.ParseUint(string(line[9:12]), 10, 16)
	if err != nil || code < 100 {
		return 0, 0, 0, Failure("answer's status is no number")
	}
	length = -1
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		name, value, ok := bytes.Cut(line, []byte(":"))
		switch {
		case !ok || bytes.ContainsAny(name, " \t") || len(name) == 0 || bytes.ContainsAny(line, "\r\n"):
			return 0, 0, 0, Failure("answer has a malformed header line")
		case isField(name, "transfer-encoding"):
			return 0, 0, 0, Failure("answer has a Transfer-Encoding")
		case !isField(name, "content-length"):
		case length >= 0:
			return 0, 0, 0, Failure("answer has two Content-Lengths")
		default:
			n, err := strconv.ParseUint(string(bytes.Trim(value, " \t")), 10, 63)
			if err != nil {
				return 0, 0, 0, Failure("answer's Content-Length is no number")
			}
			length = int64(n)
		}
	}
	if length < 0 {
		return 0, 0, 0, Failure("answer has no Content-Length")
	}
	return end + 4, int(code), length, nil
}

func isField(name []byte, lower string) bool {
	return len(name) == len(lower) && bytes.EqualFold(name, []byte(lower))
}
