package admin

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"txmesh/interceptor"
)

// takeoverMax bounds one transaction of another server: it has its payloads twice, in the steps and in the rows.
const takeoverMax = 32 << 20

// takeOver begins here what a server of DTM has begun. The door knows how.
func (s *Server) takeOver(w http.ResponseWriter, r *http.Request) {
	if s.opt.TakeOver == nil {
		write(w, problem(codeRoute, "no door for clients of DTM is open: set dtm or dtm-grpc", ""))
		return
	}
	word := r.URL.Query().Get("dry-run")
	if word != "" && word != "true" && word != "false" {
		write(w, problem(codeValue, fmt.Sprintf("dry-run %q: want true or false", word), ""))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, takeoverMax))
	if _, large := errors.AsType[*http.MaxBytesError](err); large {
		write(w, problem(codeTooLarge, fmt.Sprintf("of a takeover at most %d MiB", takeoverMax>>20), ""))
		return
	}
	if err != nil {
		write(w, problem(codeMalformed, err.Error(), ""))
		return
	}
	answer, err := s.opt.TakeOver(r.Context(), body, word == "true")
	switch {
	case errors.Is(err, interceptor.ErrRefused):
		write(w, problem(codeForeign, err.Error(), ""))
	case err != nil:
		s.refuse(w, err, "")
	default:
		reply(w, http.StatusOK, answer)
	}
}
