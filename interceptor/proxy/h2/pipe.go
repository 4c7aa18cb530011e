package h2

import "golang.org/x/net/http2"

// windowMax is the largest window there may be, and maxID the last stream.
const (
	windowMax = 1<<31 - 1
	maxID     = 1<<31 - 1
)

// pipe is one direction of a stream: bytes from src that go to dst as far as its windows let them. What cannot go waits
// in pending, which the window granted to src bounds. The stream's mutex guards it, but for waits.
type pipe struct {
	s            *stream
	src, dst     *link // nil: not yet
	srcID, dstID uint32

	held    bool   // the head has not left yet
	keepEnd bool   // the end waits for the Gate
	sink    bool   // nobody wants it
	ended   bool   // src has sent its end
	closed  bool   // dst was told
	pending []byte // from off on
	off     int
	kept    bool  // the Gate holds pending: its bytes must stay
	wanted  int   // bytes that the Gate wants in pending: they do not count against the window
	room    int64 // what the window of dst allows
	left    int64 // what src may still send
	length  int64 // what is still to come by content-length; -1: nobody knows
	total   int64
	seen    int64 // what had left when stands was asked, while something waited; -1: nothing did
	trailer fieldList

	waits bool // in dst.ready; guarded by dst.mu
}

func (d *pipe) waiting() []byte { return d.pending[d.off:] }

// longer reports that the body is declared to be longer than most bytes.
func (d *pipe) longer(most int) bool {
	return d.length >= 0 && d.length+int64(len(d.waiting())) > int64(most)
}

// receive takes a frame of DATA. length counts its padding too. The code is that of a stream error, 0 if all is well.
func (d *pipe) receive(p []byte, length int, end bool, b *batch) http2.ErrCode {
	if d.ended {
		return http2.ErrCodeStreamClosed
	}
	if d.left -= int64(length); d.left < 0 {
		return http2.ErrCodeFlowControl
	}
	if d.length >= 0 {
		if d.length -= int64(len(p)); d.length < 0 || end && d.length > 0 {
			return http2.ErrCodeProtocol
		}
	}
	d.total += int64(len(p))
	d.ended = end
	if !d.sink {
		n := 0
		if !d.held && len(d.waiting()) == 0 {
			n = d.send(p, b)
		}
		d.keep(p[n:])
	}
	d.give(b)
	return 0
}

// receiveTrailer takes the fields that end the body.
func (d *pipe) receiveTrailer(h fieldList, b *batch) http2.ErrCode {
	if d.ended {
		return http2.ErrCodeStreamClosed
	}
	if d.length > 0 || h.plain() != "" {
		return http2.ErrCodeProtocol
	}
	d.ended, d.trailer = true, h
	d.pump(b)
	return 0
}

func (d *pipe) keep(p []byte) {
	if len(p) > 0 {
		d.pending = append(d.pending, p...)
	}
}

// send passes on as much of p as it can, and the end behind it.
func (d *pipe) send(p []byte, b *batch) (sent int) {
	for !d.closed {
		rest := p[sent:]
		last := d.ended && d.trailer == nil && !d.keepEnd
		n := min(len(rest), int(max(d.room, 0)))
		if n == 0 && (len(rest) > 0 || !last) {
			break
		}
		end := last && n == len(rest)
		m, more := d.dst.data(d, rest[:n], end, b)
		d.s.remember(d, rest[:m])
		sent, d.room = sent+m, d.room-int64(m)
		d.closed = end && m == n
		if !more {
			break
		}
	}
	if sent == len(p) && d.ended && d.trailer != nil && !d.keepEnd && !d.closed {
		d.dst.headersTo(d.dstID, b, true, d.trailer)
		d.closed = true
	}
	return sent
}

// pump goes on with what waits.
func (d *pipe) pump(b *batch) {
	if d.held || d.sink || d.dst == nil || d.closed {
		return
	}
	d.off += d.send(d.waiting(), b)
	if d.off == len(d.pending) {
		if d.kept || cap(d.pending) > frameMax {
			d.pending = nil
		}
		d.pending, d.off = d.pending[:0], 0
	}
	d.give(b)
	d.s.settle(b)
}

// give lets src send more, by what has left.
func (d *pipe) give(b *batch) {
	if d.ended || d.src == nil {
		return
	}
	n := streamWindow - d.left - int64(max(0, len(d.waiting())-d.wanted))
	if n >= streamWindow/4 {
		d.left += n
		d.src.credit(d.srcID, n, b)
	}
}

// drop forgets what waits, and takes everything from now on for nobody.
func (d *pipe) drop(b *batch) {
	d.sink, d.pending, d.off, d.kept = true, nil, 0, false
	d.give(b)
}
