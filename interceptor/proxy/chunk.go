package proxy

import (
	"errors"
	"math"
)

// Bounds of what a chunked body may carry beside its data.
const (
	chunkLineMax = 1 << 10 // one size line with its extensions
	trailersMax  = 8 << 10 // all trailers together
)

// The errors of a body that no second reader could be trusted to read the same way.
var (
	errChunkSize  = errors.New("chunk size is not a hexadecimal number")
	errChunkLong  = errors.New("chunk size line or trailers too long")
	errChunkEnd   = errors.New("chunk does not end in CRLF where its size says")
	errChunkByte  = errors.New("control character or bare line end in a chunk extension")
	errBadTrailer = errors.New("malformed trailer")
	errForbidden  = errors.New("trailer that would frame or route the message")
)

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExtension
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	trailersLF
	chunksDone
)

// chunks follows a chunked body byte by byte, so that it can pass on unchanged: sizes, extensions and
// trailers too. It is strict, because whatever it lets through is read by somebody else again.
type chunks struct {
	state  chunkState
	left   int64 // of the chunk
	digits int   // of its size
	line   int   // bytes of the size line, or of all trailers
	name   [nameMax]byte
	named  int // bytes of the trailer's name; more than nameMax: none of those that are looked for
}

// nameMax is the length of transfer-encoding, the longest name that no trailer may have.
const nameMax = 17

// next looks at the run of bytes at the start of p that is either all data or all framing, and says which.
func (c *chunks) next(p []byte) (n int, data bool, err error) {
	if c.state == chunkData {
		if int64(len(p)) < c.left {
			c.left -= int64(len(p))
			return len(p), true, nil
		}
		n, c.left = int(c.left), 0
		c.state = chunkDataCR
		return n, true, nil
	}
	for n < len(p) && c.state != chunkData && c.state != chunksDone {
		if c.state >= trailerStart {
			err = c.trailer(p[n])
		} else {
			err = c.frame(p[n])
		}
		if err != nil {
			return n, false, err
		}
		n++
	}
	return n, false, nil
}

// frame takes one byte of a size line or of the CRLF after a chunk.
func (c *chunks) frame(b byte) error {
	switch c.state {
	case chunkSize:
		return c.size(b)
	case chunkExtension:
		c.line++
		if b == '\r' {
			c.state = chunkSizeLF
			return nil
		}
		if !isValueByte(b) {
			return errChunkByte
		}
		if c.line > chunkLineMax {
			return errChunkLong
		}
		return nil
	case chunkSizeLF:
		if b != '\n' {
			return errChunkByte
		}
		c.state = chunkData
		if c.left == 0 {
			c.state = trailerStart
		}
		c.digits, c.line = 0, 0
		return nil
	case chunkDataCR:
		if b != '\r' {
			return errChunkEnd
		}
		c.state = chunkDataLF
		return nil
	case chunkDataLF:
		if b != '\n' {
			return errChunkEnd
		}
		c.state = chunkSize
		return nil
	default:
		panic("chunk frame in a state of data or trailers")
	}
}

// size takes one byte of the size itself, or the one that ends it.
func (c *chunks) size(b byte) error {
	d, ok := unhex(b)
	if ok {
		if c.left > math.MaxInt64>>4 {
			return errChunkSize
		}
		c.left = c.left<<4 | int64(d)
		c.digits++
		if c.digits > 16 {
			return errChunkSize
		}
		return nil
	}
	if c.digits == 0 {
		return errChunkSize
	}
	switch b {
	case '\r':
		c.state = chunkSizeLF
		return nil
	case ';':
		c.state = chunkExtension
		return nil
	}
	return errChunkSize
}

// trailer takes one byte of the trailer section.
func (c *chunks) trailer(b byte) error {
	c.line++
	if c.line > trailersMax {
		return errChunkLong
	}
	switch {
	case c.state == trailerStart && b == '\r':
		c.state = trailersLF
	case (c.state == trailerStart || c.state == trailerName) && isTokenByte(b):
		c.spell(b)
	case c.state == trailerName && b == ':':
		if c.forbidden() {
			return errForbidden
		}
		c.state = trailerValue
	case c.state == trailerValue && b == '\r':
		c.state = trailerLF
	case c.state == trailerValue && isValueByte(b):
	case c.state == trailerLF && b == '\n':
		c.state = trailerStart
	case c.state == trailersLF && b == '\n':
		c.state = chunksDone
	default:
		return errBadTrailer
	}
	return nil
}

// spell takes one byte of a trailer's name.
func (c *chunks) spell(b byte) {
	if c.state == trailerStart {
		c.state, c.named = trailerName, 0
	}
	if c.named < nameMax {
		c.name[c.named] = b
	}
	c.named++
}

// forbidden reports whether a reader who takes trailers for header fields would read another message (RFC 9110, 6.5.1).
func (c *chunks) forbidden() bool {
	if c.named > nameMax {
		return false
	}
	switch nameOf(c.name[:c.named]) {
	case contentLengthName, transferEncodingName, hostName:
		return true
	default:
		return false
	}
}

func unhex(b byte) (byte, bool) {
	switch {
	case '0' <= b && b <= '9':
		return b - '0', true
	case 'a' <= b && b <= 'f':
		return b - 'a' + 10, true
	case 'A' <= b && b <= 'F':
		return b - 'A' + 10, true
	}
	return 0, false
}
