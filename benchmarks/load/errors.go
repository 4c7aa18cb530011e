package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
)

// Failure is an answer that is not right.
type Failure string

func (f Failure) Error() string { return string(f) }

const (
	errNeverStarted = Failure("never started: all connections were busy to the end")
	errBody         = Failure("answer's body differs from what was sent")
)

// name is what an error is counted under: few names, none with a port in it.
func name(err error) string {
	stage := ""
	for _, s := range []string{"connect: ", "prepare: "} {
		if strings.HasPrefix(err.Error(), s) {
			stage = s
		}
	}
	if f := Failure(""); errors.As(err, &f) {
		return stage + string(f)
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return stage + errno.Error()
	}
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return stage + "connection closed by the other side"
	case errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded):
		return stage + "no answer in time"
	case errors.Is(err, net.ErrClosed):
		return stage + "broken off"
	}
	return stage + fmt.Sprintf("%T", errors.Unwrap(err))
}
