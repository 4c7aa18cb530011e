package h2

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha1" // RFC 6455 has it so; nothing is kept secret by it
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"txmesh/interceptor/socket"
)

// plain is a connection to an endpoint without frames: all of it is one tunnel. That of a WebSocket is asked for by an
// upgrade of HTTP/1.1. Its link bounds and writes what goes to the endpoint, as it does for frames.
type plain struct {
	*link
	s    *stream
	key  string // of the upgrade; empty: none is asked for
	room int64  // what may still be read; guarded by link.mu
}

const (
	plainID     = 1 // the only stream
	plainBuffer = 1 << 10
	unbounded   = math.MaxInt64 / 2 // TCP has windows of its own
)

// malformed is an answer that is none.
type malformed struct{ detail string }

func (e *malformed) Error() string { return e.detail }

func newPlain(s *stream, conn net.Conn, endpoint string) *plain {
	conn = socket.Quick(conn)
	quick, _ := conn.(*socket.Conn)
	l := &link{
		srv: s.srv, conn: conn, quick: quick, writeTime: s.srv.opts.Limits.WriteIdle, endpoint: endpoint,
		maxFrame: frameMax, initial: unbounded, window: unbounded, limit: 1, next: plainID, streams: map[uint32]*stream{},
	}
	l.drained = sync.NewCond(&l.mu)
	p := &plain{link: l, s: s, room: streamWindow}
	l.plain, l.role = p, p
	if s.tunnel == webSocket {
		var nonce [16]byte
		_, _ = rand.Read(nonce[:]) // it never fails
		p.key = base64.StdEncoding.EncodeToString(nonce[:])
	}
	return p
}

// ask sends the head of the request; called with mu held.
func (p *plain) ask(h fieldList, b *batch) {
	p.going = true // and takes no other
	if p.key == "" {
		return
	}
	out := fmt.Appendf(p.out, "GET %s HTTP/1.1\r\nHost: %s\r\n", h.get(":path"), h.authority())
	for _, f := range h {
		switch {
		case guarded(f.Name), f.Name == "host", f.Name == "cookie", f.Name == "sec-websocket-key", strings.HasPrefix(f.Name, "proxy-"):
		default:
			out = fmt.Appendf(out, "%s: %s\r\n", f.Name, f.Value)
		}
	}
	if crumbs := h.all("cookie"); len(crumbs) > 0 { // RFC 9113, 8.2.3
		out = fmt.Appendf(out, "cookie: %s\r\n", strings.Join(crumbs, "; "))
	}
	p.out = fmt.Appendf(out, "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: %s\r\n\r\n", p.key)
	p.say(nil, b)
}

// send takes what goes to the endpoint, and the end of it; called with mu held.
func (p *plain) send(piece []byte, end bool, b *batch) {
	p.out, p.half = append(p.out, piece...), end
	p.say(nil, b)
}

// allow lets more be read; called with mu held.
func (p *plain) allow(n int64) {
	p.room += n
	p.drained.Broadcast()
}

// run brings what the endpoint says.
func (p *plain) run() {
	var b batch
	if err := p.converse(&b); err != nil {
		p.fail(err, &b)
	}
	b.flush()
}

func (p *plain) converse(b *batch) error {
	if p.key == "" {
		if err := p.tell(fieldList{{Name: ":status", Value: "200"}}, b); err != nil {
			return err
		}
		return p.copy(p.conn, b)
	}
	res, rest, err := p.await(b) //nolint:bodyclose // it ends with the connection
	if err != nil {
		return err
	}
	if err := p.tell(answerFields(res), b); err != nil {
		return err
	}
	if res.StatusCode == http.StatusSwitchingProtocols {
		return p.copy(&prefixed{rest, p.conn}, b)
	}
	if err := p.copy(res.Body, b); err != nil {
		return err
	}
	p.forget(plainID, b)
	p.s.endpointReset(p.link, plainID, http2.ErrCodeNo, b) // the answer is complete, what waits for the tunnel is not wanted
	return nil
}

// await reads heads until the final one; interim ones go to the client. Behind a 101 comes rest.
func (p *plain) await(b *batch) (res *http.Response, rest []byte, err error) {
	limits := &p.srv.opts.Limits
	limited := &io.LimitedReader{R: p.conn}
	br := bufio.NewReader(limited)
	for {
		limited.N = int64(limits.HeaderBytes)
		res, err = http.ReadResponse(br, &http.Request{Method: http.MethodGet})
		switch {
		case err != nil && limited.N == 0 || err == nil && len(res.Header) > limits.HeaderFields:
			return nil, nil, &malformed{"header too large"}
		case err != nil && !isBroken(err):
			return nil, nil, &malformed{err.Error()}
		case err != nil:
			return nil, nil, err
		}
		limited.N = math.MaxInt64
		switch status := res.StatusCode; {
		case status == http.StatusSwitchingProtocols:
			rest, _ = br.Peek(br.Buffered()) // so much is there
			return res, bytes.Clone(rest), p.accepted(res.Header)
		case status >= 300:
			return res, nil, nil
		case status >= 200: // over HTTP/2 it would open the tunnel
			return nil, nil, &malformed{"status " + strconv.Itoa(status) + " to a request for an upgrade"}
		}
		if err := p.tell(answerFields(res), b); err != nil {
			return nil, nil, err
		}
		b.flush()
	}
}

// isBroken tells a connection that broke from an answer that makes no sense.
func isBroken(err error) bool {
	var broken net.Error
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &broken)
}

// accepted says what is wrong with a 101 (RFC 6455, 4.1).
func (p *plain) accepted(h http.Header) error {
	sum := sha1.Sum([]byte(p.key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	switch {
	case !strings.EqualFold(h.Get("Upgrade"), "websocket"), !httpguts.HeaderValuesContainsToken(h["Connection"], "upgrade"):
		return &malformed{"101 is not for a WebSocket"}
	case h.Get("Sec-Websocket-Accept") != base64.StdEncoding.EncodeToString(sum[:]):
		return &malformed{"Sec-WebSocket-Accept does not fit to the key"}
	}
	return nil
}

// answerFields is the head of an answer of HTTP/1.1 as HTTP/2 has it, without what was for this connection alone.
func answerFields(res *http.Response) fieldList {
	opened := res.StatusCode == http.StatusSwitchingProtocols
	for _, list := range res.Header["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); !strings.EqualFold(name, "content-length") {
				res.Header.Del(name)
			}
		}
	}
	h := fieldList{{Name: ":status", Value: strconv.Itoa(res.StatusCode)}}
	if opened {
		h[0].Value = "200"
		res.Header.Del("Sec-Websocket-Accept")
		res.Header.Del("Content-Length")
	}
	for _, key := range slices.Sorted(maps.Keys(res.Header)) {
		name := strings.ToLower(key)
		if guarded(name) && name != "content-length" || strings.HasPrefix(name, "proxy-") {
			continue
		}
		for _, v := range res.Header[key] {
			h = append(h, hpack.HeaderField{Name: name, Value: v})
		}
	}
	return h
}

func (p *plain) tell(h fieldList, b *batch) error {
	if code := p.s.respond(p.link, plainID, h, false, b); code != 0 {
		return &malformed{"stream error " + code.String()}
	}
	return nil
}

// copy passes on what comes, as far as the client's window lets it, until it ends. A tunnel that rests has a small buffer.
func (p *plain) copy(from io.Reader, b *batch) error {
	buf := make([]byte, plainBuffer)
	for {
		b.flush()
		room := p.allowed()
		if room == 0 {
			return net.ErrClosed
		}
		n, err := from.Read(buf[:min(room, int64(len(buf)))])
		end := errors.Is(err, io.EOF)
		if n > 0 || end {
			p.mu.Lock()
			p.room -= int64(n)
			p.mu.Unlock()
			if code := p.s.data(p.link, plainID, buf[:n], n, end, b); code != 0 {
				return &malformed{"stream error " + code.String()}
			}
		}
		switch {
		case end:
			return nil
		case err != nil:
			return err
		case n == len(buf) && n < frameMax:
			buf = make([]byte, frameMax)
		case n < plainBuffer && len(buf) > plainBuffer:
			buf = make([]byte, plainBuffer)
		}
	}
}

// allowed waits until something may be read, and returns how much; 0: the connection is dead.
func (p *plain) allowed() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.room <= 0 && p.dead == nil {
		p.drained.Wait()
	}
	if p.dead != nil {
		return 0
	}
	return p.room
}

func (p *plain) lost(streams []*stream, err error, b *batch) {
	for _, s := range streams {
		s.endpointLost(p.link, err, b)
	}
}

func (p *plain) freed(*batch) {}
