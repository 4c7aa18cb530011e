package raw

import (
	"errors"
	"io"
)

const (
	waiting   = 1 << 10  // what a connection reads with while little comes
	streaming = 32 << 10 // and while much does
)

// copy is the way through this process, for connections that are no bare sockets.
func (s *session) copy(f *flow) error {
	buf := make([]byte, waiting)
	for {
		n, err := f.from.Read(buf)
		if n > 0 {
			s.count(f, n)
			f.copied.Add(int64(n))
			if _, err := f.to.Write(buf[:n]); err != nil {
				return errors.Join(errWrite, err)
			}
		}
		switch {
		case err != nil && errors.Is(err, io.EOF) && f.brokeOff():
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		case n == len(buf) && n < streaming:
			buf = make([]byte, streaming)
		case n < waiting && len(buf) > waiting:
			buf = make([]byte, waiting)
		}
	}
}
