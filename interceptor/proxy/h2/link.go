package h2

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"txmesh/interceptor/socket"
)

var errDead = errors.New("peer does not answer a ping")

// role is what differs between connections.
type role interface {
	freed(b *batch)                              // a stream has ended
	lost(streams []*stream, err error, b *batch) // the connection has
}

// framed is what differs between a connection of HTTP/2 to a client and one to an endpoint. All run on its reading goroutine.
type framed interface {
	role
	// headers takes a complete list of fields. It owns them.
	headers(id uint32, h fieldList, end bool, b *batch) error
	// reset is told that the peer gave up a stream, which is forgotten already.
	reset(s *stream, id uint32, code http2.ErrCode, b *batch)
	goAway(f *http2.GoAwayFrame, b *batch)
	settled(b *batch) // the peer's first settings have come
	acked(data [8]byte, b *batch)
	unknown(id uint32, t http2.FrameType, b *batch) error // a frame of a stream that is not there
	last() uint32                                         // stream of the peer that was looked at
	rest() time.Duration                                  // how long there may be no streams
}

// link is one HTTP/2 connection. One goroutine reads it. Whoever has something to say appends it to out, and the batch
// that it was said in writes it. Locks: a stream's before a link's, and never two links' at once.
type link struct {
	srv      *Server
	conn     net.Conn
	quick    *socket.Conn // nil: the connection can only be written to with blocking
	role     role
	frames   framed // the same role; nil: plain
	plain    *plain // nil: HTTP/2
	client   bool   // the other side is a client
	endpoint string // else this endpoint
	in       reading
	guides   sync.WaitGroup // of a client's streams

	writeTime time.Duration // in which the peer must take something of what is written

	activity atomic.Uint32 // counts what was read, for tend
	active   time.Time     // when tend last saw a difference; tend alone uses it
	seen     uint32        // the count at that time
	pinged   bool

	mu       sync.Mutex // guards the rest
	drained  *sync.Cond // out became smaller, or dead was set
	out      []byte
	spare    []byte
	queued   bool // some batch will write out
	writing  bool // somebody writes
	fr       *http2.Framer
	enc      *hpack.Encoder
	block    bytes.Buffer
	maxFrame int
	initial  int64 // window of a new stream
	window   int64 // of the connection
	limit    uint32
	streams  map[uint32]*stream
	next     uint32  // id of the next stream to an endpoint; to a client, the last one that it opened
	ready    []*pipe // they have something to send and found no room
	extends  bool    // the peer takes extended CONNECT
	going    bool    // no new streams: GOAWAY was sent or received
	half     bool    // end our half once out is written
	ending   bool    // close once out is written
	dead     error
}

// outbox is where the framer writes.
type outbox struct{ l *link }

func (o outbox) Write(p []byte) (int, error) {
	o.l.out = append(o.l.out, p...)
	return len(p), nil
}

func newLink(srv *Server, conn net.Conn, br *bufio.Reader, client bool) *link {
	quick, _ := conn.(*socket.Conn)
	l := &link{
		srv: srv, conn: conn, quick: quick, writeTime: writeTime, client: client, active: time.Now(),
		maxFrame: frameMax, initial: 65535, window: 65535, limit: 100, streams: map[uint32]*stream{},
	}
	l.drained = sync.NewCond(&l.mu)
	l.fr = http2.NewFramer(outbox{l}, br)
	l.fr.SetReuseFrames()
	l.fr.SetMaxReadFrameSize(frameMax)
	l.enc = hpack.NewEncoder(&l.block)
	l.in.init(l, br)
	return l
}

// greet sends our settings. They are the first thing that leaves.
func (l *link) greet(b *batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	settings := []http2.Setting{
		{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		{ID: http2.SettingMaxHeaderListSize, Val: uint32(l.srv.opts.Limits.HeaderBytes)},
	}
	if l.client {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(l.srv.opts.Limits.Streams)},
			http2.Setting{ID: http2.SettingEnableConnectProtocol, Val: 1})
	} else {
		l.out = append(l.out, http2.ClientPreface...)
		settings = append(settings, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	}
	l.say(l.fr.WriteSettings(settings...), b)
	l.say(l.fr.WriteWindowUpdate(0, connWindow-65535), b)
}

// say notes that something was appended to out; called with mu held. The framer's errors are those of arguments that are
// never wrong here: out takes everything.
func (l *link) say(err error, b *batch) {
	if err != nil {
		panic(fmt.Sprintf("frame to %s: %v", l.conn.RemoteAddr(), err))
	}
	if !l.queued {
		l.queued = true
		b.links = append(b.links, l)
	}
}

// sendHeaders encodes a list of fields; called with mu held.
func (l *link) sendHeaders(id uint32, h fieldList, end bool, b *batch) {
	l.block.Reset()
	for i := range h {
		_ = l.enc.WriteField(h[i]) // a bytes.Buffer takes everything
	}
	p := l.block.Bytes()
	first := p[:min(len(p), l.maxFrame)]
	p = p[len(first):]
	l.say(l.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndStream: end, EndHeaders: len(p) == 0}), b)
	for len(p) > 0 {
		next := p[:min(len(p), l.maxFrame)]
		p = p[len(next):]
		l.say(l.fr.WriteContinuation(id, len(p) == 0, next), b)
	}
}

// headersTo sends a list of fields.
func (l *link) headersTo(id uint32, b *batch, end bool, h fieldList) {
	l.mu.Lock()
	if l.dead == nil {
		l.sendHeaders(id, h, end, b)
	}
	l.mu.Unlock()
}

// data sends as much of p as there is room for, at most a frame. If more is false the pipe goes on later: it found no
// room, or others wait.
func (l *link) data(d *pipe, p []byte, end bool, b *batch) (n int, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil {
		return len(p), false // nobody will miss it
	}
	if len(p) > 0 {
		n = min(len(p), l.maxFrame, max(0, int(min(l.window, int64(outMax-len(l.out))))))
		if n == 0 {
			l.enlist(d)
			return 0, false
		}
	}
	l.window -= int64(n)
	if end = end && n == len(p); l.plain != nil {
		l.plain.send(p[:n], end, b)
	} else {
		l.say(l.fr.WriteData(d.dstID, end, p[:n]), b)
	}
	if n < len(p) && len(l.ready) > 0 {
		l.enlist(d)
		return n, false
	}
	return n, true
}

// enlist puts a pipe at the end of those that wait for room; called with mu held.
func (l *link) enlist(d *pipe) {
	if !d.waits {
		d.waits = true
		l.ready = append(l.ready, d)
	}
}

// delist takes a pipe that goes elsewhere from those that wait for room here.
func (l *link) delist(d *pipe) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.waits {
		d.waits = false
		l.ready = slices.DeleteFunc(l.ready, func(other *pipe) bool { return other == d })
	}
}

// credit gives the peer back what it may send.
func (l *link) credit(id uint32, n int64, b *batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.plain != nil:
		l.plain.allow(n)
	case l.dead == nil:
		l.say(l.fr.WriteWindowUpdate(id, uint32(n)), b)
	}
}

// resetStream gives a stream up and forgets it.
func (l *link) resetStream(id uint32, code http2.ErrCode, b *batch) {
	if l.plain != nil {
		l.abort() // first: forget may let another goroutine close
		l.forget(id, b)
		l.fail(net.ErrClosed, b)
		return
	}
	l.mu.Lock()
	if l.dead == nil {
		l.say(l.fr.WriteRSTStream(id, code), b)
	}
	l.mu.Unlock()
	l.forget(id, b)
}

// forget frees the place of a stream that has ended.
func (l *link) forget(id uint32, b *batch) {
	l.mu.Lock()
	_, there := l.streams[id]
	delete(l.streams, id)
	if l.going && len(l.streams) == 0 {
		l.close(b)
	}
	l.mu.Unlock()
	if there {
		l.role.freed(b)
	}
}

// close ends the connection once all is written; called with mu held.
func (l *link) close(b *batch) {
	if l.ending {
		return
	}
	l.ending = true
	l.say(nil, b)
}

func (l *link) find(id uint32) *stream {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.streams[id]
}

// goAway tells the peer that no new streams are taken, and why.
func (l *link) sendGoAway(last uint32, code http2.ErrCode, text string, b *batch) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dead != nil || l.ending {
		return
	}
	l.going = true
	l.say(l.fr.WriteGoAway(last, code, []byte(text)), b)
	if code != http2.ErrCodeNo || len(l.streams) == 0 && last != maxID {
		l.close(b)
	}
}

// pump lets those go on that wait for room, in turns.
func (l *link) pump(b *batch) {
	for {
		l.mu.Lock()
		if len(l.ready) == 0 || l.window <= 0 || len(l.out) >= outMax || l.dead != nil {
			l.mu.Unlock()
			return
		}
		d := l.ready[0]
		l.ready[0] = nil
		l.ready = l.ready[1:]
		d.waits = false
		l.mu.Unlock()
		d.s.mu.Lock()
		d.pump(b)
		d.s.mu.Unlock()
	}
}

// fail ends the connection at once. Its streams are told, once.
func (l *link) fail(err error, b *batch) {
	l.mu.Lock()
	if l.dead != nil {
		l.mu.Unlock()
		return
	}
	l.dead, l.going = err, true
	l.out, l.ready = nil, nil
	streams := make([]*stream, 0, len(l.streams))
	for _, s := range l.streams {
		streams = append(streams, s)
	}
	clear(l.streams)
	l.drained.Broadcast()
	l.mu.Unlock()
	l.conn.Close() // nothing more is expected of it
	l.role.lost(streams, err, b)
}

// abort lets the close that follows be a reset.
func (l *link) abort() {
	if reset, ok := l.conn.(interface{ SetLinger(sec int) error }); ok {
		_ = reset.SetLinger(0) // the close is all that can be done
	}
}

// waitForRoom stops a client from asking while it does not read the answers.
func (l *link) waitForRoom(b *batch) {
	l.mu.Lock()
	if len(l.out) < outFull {
		l.mu.Unlock()
		return
	}
	l.mu.Unlock()
	b.flush()
	l.mu.Lock()
	for len(l.out) >= outFull && l.dead == nil {
		l.drained.Wait()
	}
	l.mu.Unlock()
}
