package dtm

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"txmesh/interceptor"
	"txmesh/txn"
)

// fault is an answer that is no success: a status of HTTP, its word, and the message that clients show.
type fault struct {
	status  int
	word    string // FAILURE, ONGOING or none
	message string
}

func (f *fault) Error() string { return f.message }

// invalid is a request that no repeat can make right.
func invalid(format string, args ...any) error {
	return &fault{status: http.StatusBadRequest, message: fmt.Sprintf(format, args...)}
}

// missing is a request about something that is not there.
func missing(format string, args ...any) error {
	return &fault{status: http.StatusNotFound, message: fmt.Sprintf(format, args...)}
}

// failure is final: what was asked for will not happen. DTM's messages of this kind end in the word.
func failure(format string, args ...any) error {
	message := fmt.Sprintf(format, args...)
	if !strings.Contains(message, wordFailure) {
		message += " " + wordFailure
	}
	return &fault{status: http.StatusConflict, word: wordFailure, message: message}
}

func ongoing(format string, args ...any) error {
	return &fault{status: http.StatusTooEarly, word: wordOngoing, message: fmt.Sprintf(format, args...)}
}

// faultOf makes an answer of any error. What the engine refuses for a while is 503: clients repeat it.
func faultOf(err error) *fault {
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	switch {
	case errors.Is(err, interceptor.ErrBranches), errors.Is(err, interceptor.ErrTooLarge):
		return &fault{status: http.StatusRequestEntityTooLarge, message: err.Error()}
	case errors.Is(err, interceptor.ErrDenied):
		return &fault{status: http.StatusForbidden, message: fmt.Sprintf("%s: %v: %s", interceptor.CodeDenied, err, interceptor.Explain(interceptor.CodeDenied).Remedy)}
	case errors.Is(err, txn.ErrOrder), errors.Is(err, txn.ErrNoBranch):
		return &fault{status: http.StatusBadRequest, message: err.Error()}
	case errors.Is(err, txn.ErrConflict), errors.Is(err, txn.ErrDecided), errors.Is(err, txn.ErrEngineDecides):
		return &fault{status: http.StatusConflict, word: wordFailure, message: err.Error() + " " + wordFailure}
	}
	return &fault{status: http.StatusServiceUnavailable, message: err.Error()}
}
