package proxy

import (
	"errors"
	"io"

	"txmesh/interceptor"
)

type framing uint8

const (
	noBody framing = iota
	byLength
	byChunks
	untilClose
)

// body follows the body of one message through its bytes on the wire.
type body struct {
	framing framing
	left    int64 // byLength
	chunks  chunks
	done    bool
}

// next looks at the run of bytes at the start of p that is all data or all framing of this body. It sets done
// with the last byte, and takes no byte behind it.
func (b *body) next(p []byte) (n int, data bool, err error) {
	switch b.framing {
	case noBody:
		b.done = true
		return 0, true, nil
	case byLength:
		if int64(len(p)) < b.left {
			b.left -= int64(len(p))
			return len(p), true, nil
		}
		n, b.left, b.done = int(b.left), 0, true
		return n, true, nil
	case byChunks:
		n, data, err = b.chunks.next(p)
		b.done = b.chunks.state == chunksDone
		return n, data, err
	case untilClose:
		return len(p), true, nil
	}
	panic("body with an unknown framing")
}

// take counts the bytes at the start of p that belong to the body.
func (b *body) take(p []byte) (n int, err error) {
	for {
		m, _, err := b.next(p[n:])
		n += m
		if err != nil || b.done || n == len(p) {
			return n, err
		}
	}
}

// strip removes the framing from the bytes of the body at the start of p, in place.
func (b *body) strip(p []byte) (data []byte, n int, err error) {
	data = p[:0]
	for {
		m, isData, err := b.next(p[n:])
		if isData {
			data = append(data, p[n:n+m]...)
		}
		n += m
		if err != nil || b.done || n == len(p) {
			return data, n, err
		}
	}
}

// piece returns what of p goes to the client: all bytes of the body, or its data alone. n counts what it took.
func (b *body) piece(p []byte, unchunk bool) (out []byte, n int, err error) {
	if unchunk {
		return b.strip(p)
	}
	n, err = b.take(p)
	return p[:n], n, err
}

// end says what the end of the connection means to this body.
func (b *body) end(err error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	if b.framing == untilClose {
		b.done = true
		return nil
	}
	return io.ErrUnexpectedEOF
}

// keptMax bounds the memory that a connection keeps from one buffered body for the next.
const keptMax = 64 << 10

// message is a head and a body that may have been buffered for the Gate.
type message struct {
	head head
	body body
	src  *reader
	fill func() error // reads more into src

	wire []byte // what Body took from src, as it was on the wire
	data []byte // the same without framing, if it is chunked
	err  error  // why Body could not end
}

// buffer reads the body until it is complete, or max bytes of data are passed. What it read is sent from wire.
func (m *message) buffer(max int) ([]byte, error) {
	if m.body.framing == byLength && m.body.left+int64(len(m.wire)) > int64(max) {
		return nil, interceptor.ErrBodyTooLarge
	}
	for !m.body.done && m.err == nil {
		if len(m.content()) > max || len(m.wire) > 2*max+largeBuffer {
			return nil, interceptor.ErrBodyTooLarge
		}
		m.err = m.more()
	}
	if m.err != nil {
		return nil, m.err
	}
	if len(m.content()) > max {
		return nil, interceptor.ErrBodyTooLarge
	}
	return m.content(), nil
}

// content is the data of what was buffered.
func (m *message) content() []byte {
	if m.body.framing == byChunks {
		return m.data
	}
	return m.wire
}

// more moves what src has buffered of the body to wire and data, and reads if there was nothing.
func (m *message) more() error {
	p := m.src.buffered()
	if len(p) == 0 && m.body.framing != noBody && !(m.body.framing == byLength && m.body.left == 0) {
		m.src.widen(largeBuffer)
		if err := m.fill(); err != nil {
			return m.body.end(err)
		}
		p = m.src.buffered()
	}
	n, isData, err := m.body.next(p)
	m.wire = append(m.wire, p[:n]...)
	if isData && m.body.framing == byChunks {
		m.data = append(m.data, p[:n]...)
	}
	m.src.discard(n)
	return err
}

// reset forgets the body of the last exchange.
func (m *message) reset() {
	m.wire, m.data, m.err = kept(m.wire), kept(m.data), nil
	m.body = body{}
}

func kept(b []byte) []byte {
	if cap(b) > keptMax {
		return nil
	}
	return b[:0]
}
