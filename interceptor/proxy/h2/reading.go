package h2

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// reading is what the reading goroutine of a link keeps for itself.
type reading struct {
	br      *bufio.Reader
	dec     *hpack.Decoder
	begun   bool // the first settings have come
	id      uint32
	end     bool // of the stream, in the header block being read
	fields  fieldList
	size    int // of the list, as RFC 9113 counts
	count   int
	raw     int // bytes of the block as on the wire
	frames  int
	left    int64 // what the peer may still send on the connection
	used    int64 // received and not given back
	control bucket
	resets  bucket
}

// Bounds of what one peer may send without getting on: CONTINUATION frames of one block, frames that carry nothing, and
// streams that are given up at once.
const (
	continuationsMax = 16
	controlBurst     = 10000
	controlRate      = 1000 // a second
	resetBurst       = 1000
	resetRate        = 100
)

func (r *reading) init(l *link, br *bufio.Reader) {
	r.br, r.left = br, connWindow
	r.control, r.resets = newBucket(controlBurst, controlRate), newBucket(resetBurst, resetRate)
	limits := &l.srv.opts.Limits
	r.dec = hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		r.count++
		r.size += int(f.Size())
		if r.size <= limits.HeaderBytes && r.count <= limits.HeaderFields {
			r.fields = append(r.fields, f)
		}
	})
	r.dec.SetMaxStringLength(2 * limits.HeaderBytes)
}

// broken is a connection that cannot go on, and what its peer is told.
type broken struct {
	code   http2.ErrCode
	txm    string
	detail string
}

func (e *broken) Error() string { return e.txm + ": " + e.detail + " (" + e.code.String() + ")" }

func violation(code http2.ErrCode, format string, args ...any) *broken {
	return &broken{code, CodeProtocol, fmt.Sprintf(format, args...)}
}

func flood(detail string) *broken {
	return &broken{http2.ErrCodeEnhanceYourCalm, CodeFlood, detail}
}

// read runs until the connection ends, and ends it.
func (l *link) read() {
	var b batch
	err := l.readFrames(&b)
	if bad := l.blame(err); bad != nil {
		l.srv.refused(bad.txm)
		l.srv.opts.Log.Debug("http/2 connection broken", "remote", l.conn.RemoteAddr().String(), "code", bad.txm, "detail", bad.detail)
		l.sendGoAway(l.frames.last(), bad.code, bad.txm+" "+bad.detail, &b)
		b.flush()
		l.linger()
		err = bad
	}
	l.fail(err, &b)
	b.flush()
}

// blame says what the peer did wrong, nil if the connection simply ended.
func (l *link) blame(err error) *broken {
	var conn http2.ConnectionError
	var bad *broken
	switch {
	case errors.As(err, &bad):
		return bad
	case errors.As(err, &conn):
		detail := "frame"
		if d := l.fr.ErrorDetail(); d != nil {
			detail = d.Error()
		}
		return violation(http2.ErrCode(conn), "%s", detail)
	case errors.Is(err, http2.ErrFrameTooLarge):
		return violation(http2.ErrCodeFrameSize, "frame of more than %d bytes", frameMax)
	}
	return nil
}

// linger reads what still comes, for a moment, so that a reset does not overtake the last words.
func (l *link) linger() {
	_ = l.conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, io.LimitReader(l.in.br, 1<<20)) // there is nothing to learn
}

func (l *link) readFrames(b *batch) error {
	_ = l.conn.SetReadDeadline(time.Now().Add(l.srv.opts.Limits.HeaderTime))
	for {
		if l.in.br.Buffered() < 9 {
			b.flush()
			l.activity.Add(1)
		}
		fh, err := l.fr.ReadFrameHeader()
		if err != nil {
			return l.orEnd(err)
		}
		f, err := l.payload(fh, b)
		if err == nil {
			err = l.take(f, b)
		}
		if err != nil {
			err = l.streamError(err, b)
		}
		if err != nil {
			return l.orEnd(err)
		}
		if l.client {
			l.waitForRoom(b)
		}
	}
}

// payload reads the rest of a frame. What must come at once has its time.
func (l *link) payload(fh http2.FrameHeader, b *batch) (http2.Frame, error) {
	whole := l.in.br.Buffered() >= int(fh.Length)
	if !whole {
		b.flush()
	}
	timed := !whole && fh.Type != http2.FrameData && l.in.begun && l.in.id == 0
	if timed {
		_ = l.conn.SetReadDeadline(time.Now().Add(l.srv.opts.Limits.HeaderTime))
	}
	f, err := l.fr.ReadFrameForHeader(fh)
	if timed && err == nil {
		_ = l.conn.SetReadDeadline(time.Time{})
	}
	if !l.in.begun && err == nil && (fh.Type != http2.FrameSettings || fh.Flags.Has(http2.FlagSettingsAck)) {
		return nil, violation(http2.ErrCodeProtocol, "first frame is %s, not SETTINGS", fh.Type)
	}
	return f, err
}

// orEnd tells a header block that came too slowly from a connection that ended.
func (l *link) orEnd(err error) error {
	var timeout net.Error
	l.mu.Lock()
	ending := l.ending
	l.mu.Unlock()
	if !ending && (errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)) {
		return &broken{http2.ErrCodeEnhanceYourCalm, CodeSlow, "frame came too slowly"}
	}
	return err
}

// streamError ends one stream for an error of its peer. Any other error it returns.
func (l *link) streamError(err error, b *batch) error {
	var e http2.StreamError
	if !errors.As(err, &e) {
		return err
	}
	l.srv.refused(CodeMalformed)
	s := l.find(e.StreamID)
	l.resetStream(e.StreamID, e.Code, b)
	if s != nil {
		s.peerBroke(l, e, b)
	}
	if l.client && !l.in.resets.take() {
		return flood("too many malformed streams")
	}
	return nil
}

func (l *link) take(f http2.Frame, b *batch) error {
	switch f := f.(type) {
	case *http2.DataFrame:
		return l.takeData(f, b)
	case *http2.HeadersFrame:
		if f.HasPriority() && f.Priority.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
		l.in.id, l.in.end = f.StreamID, f.StreamEnded()
		l.in.size, l.in.count, l.in.raw, l.in.frames = 0, 0, 0, 0
		return l.takeBlock(f.HeaderBlockFragment(), f.HeadersEnded(), b)
	case *http2.ContinuationFrame:
		if l.in.frames++; l.in.frames > continuationsMax {
			return flood("too many CONTINUATION frames")
		}
		return l.takeBlock(f.HeaderBlockFragment(), f.HeadersEnded(), b)
	case *http2.WindowUpdateFrame:
		return l.takeWindow(f, b)
	case *http2.RSTStreamFrame:
		return l.takeReset(f, b)
	case *http2.SettingsFrame:
		return l.takeSettings(f, b)
	case *http2.PingFrame:
		return l.takePing(f, b)
	case *http2.GoAwayFrame:
		l.frames.goAway(f, b)
		return nil
	case *http2.PushPromiseFrame:
		return violation(http2.ErrCodeProtocol, "PUSH_PROMISE")
	case *http2.PriorityFrame:
		if f.StreamDep == f.StreamID {
			return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
		}
	default: // RFC 9113, 5.5: unknown frames are ignored
	}
	return l.idleFrame()
}

// idleFrame counts a frame that carries nothing.
func (l *link) idleFrame() error {
	if l.client && !l.in.control.take() {
		return flood("too many frames that carry nothing")
	}
	return nil
}

func (l *link) takeBlock(p []byte, whole bool, b *batch) error {
	r := &l.in
	if r.raw += len(p); r.raw > 2*l.srv.opts.Limits.HeaderBytes {
		return &broken{http2.ErrCodeEnhanceYourCalm, CodeHeaderSize, "header block too large"}
	}
	if _, err := r.dec.Write(p); err != nil {
		return violation(http2.ErrCodeCompression, "%v", err)
	}
	if !whole {
		if r.frames == 0 {
			_ = l.conn.SetReadDeadline(time.Now().Add(l.srv.opts.Limits.HeaderTime))
		}
		return nil
	}
	if err := r.dec.Close(); err != nil {
		return violation(http2.ErrCodeCompression, "%v", err)
	}
	if r.frames > 0 {
		_ = l.conn.SetReadDeadline(time.Time{})
	}
	id, h := r.id, append(make(fieldList, 0, len(r.fields)), r.fields...)
	clear(r.fields)
	r.id, r.fields = 0, r.fields[:0]
	return l.frames.headers(id, h, r.end, b)
}

func (l *link) takeData(f *http2.DataFrame, b *batch) error {
	r := &l.in
	if r.left -= int64(f.Length); r.left < 0 {
		return violation(http2.ErrCodeFlowControl, "more DATA than the window of the connection")
	}
	if r.used += int64(f.Length); r.used >= connWindow/4 {
		l.credit(0, r.used, b)
		r.left, r.used = r.left+r.used, 0
	}
	s := l.find(f.StreamID)
	if s == nil {
		return l.frames.unknown(f.StreamID, http2.FrameData, b)
	}
	if len(f.Data()) == 0 && !f.StreamEnded() {
		if err := l.idleFrame(); err != nil {
			return err
		}
	} else {
		r.control.give()
	}
	if code := s.data(l, f.StreamID, f.Data(), int(f.Length), f.StreamEnded(), b); code != 0 {
		return http2.StreamError{StreamID: f.StreamID, Code: code}
	}
	return nil
}

func (l *link) takeWindow(f *http2.WindowUpdateFrame, b *batch) error {
	if f.Increment < 256 {
		if err := l.idleFrame(); err != nil {
			return err
		}
	}
	if f.StreamID == 0 {
		l.mu.Lock()
		l.window += int64(f.Increment)
		over := l.window > windowMax
		l.mu.Unlock()
		if over {
			return violation(http2.ErrCodeFlowControl, "window of the connection above 2^31-1")
		}
		l.pump(b)
		return nil
	}
	s := l.find(f.StreamID)
	if s == nil {
		return l.frames.unknown(f.StreamID, http2.FrameWindowUpdate, b)
	}
	if !s.widen(l, f.StreamID, int64(f.Increment), b) {
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeFlowControl}
	}
	return nil
}

func (l *link) takeReset(f *http2.RSTStreamFrame, b *batch) error {
	s := l.find(f.StreamID)
	if s == nil {
		return l.frames.unknown(f.StreamID, http2.FrameRSTStream, b)
	}
	if l.client && !l.in.resets.take() {
		return flood("too many streams given up")
	}
	l.forget(f.StreamID, b)
	l.frames.reset(s, f.StreamID, f.ErrCode, b)
	return nil
}

func (l *link) takePing(f *http2.PingFrame, b *batch) error {
	if f.IsAck() {
		l.frames.acked(f.Data, b)
		return nil
	}
	l.mu.Lock()
	l.say(l.fr.WritePing(true, f.Data), b)
	l.mu.Unlock()
	return l.idleFrame()
}

func (l *link) takeSettings(f *http2.SettingsFrame, b *batch) error {
	if f.IsAck() {
		return l.idleFrame()
	}
	delta := int64(0)
	l.mu.Lock()
	err := f.ForeachSetting(func(s http2.Setting) error { return l.set(s, &delta) })
	var streams map[uint32]*stream
	if err == nil {
		l.say(l.fr.WriteSettingsAck(), b)
		streams = maps.Clone(l.streams)
	}
	l.mu.Unlock()
	if err != nil {
		return err
	}
	if delta != 0 {
		for id, s := range streams {
			if !s.widen(l, id, delta, b) {
				return violation(http2.ErrCodeFlowControl, "window of a stream above 2^31-1")
			}
		}
	}
	if !l.in.begun {
		l.in.begun = true
		_ = l.conn.SetReadDeadline(time.Time{})
		l.frames.settled(b)
	}
	return l.idleFrame()
}

// set takes one setting of the peer; called with mu held.
func (l *link) set(s http2.Setting, delta *int64) error {
	if err := s.Valid(); err != nil {
		return err
	}
	switch s.ID {
	case http2.SettingHeaderTableSize:
		l.enc.SetMaxDynamicTableSize(min(s.Val, 4096))
	case http2.SettingInitialWindowSize:
		*delta = int64(s.Val) - l.initial
		l.initial = int64(s.Val)
	case http2.SettingMaxConcurrentStreams:
		l.limit = s.Val
	case http2.SettingEnablePush:
		if !l.client && s.Val != 0 {
			return violation(http2.ErrCodeProtocol, "a server may not enable push")
		}
	case http2.SettingEnableConnectProtocol:
		l.extends = s.Val == 1
	default: // frames of the smallest size that everybody takes are good enough; the rest asks for nothing
	}
	return nil
}
