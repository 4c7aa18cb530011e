package dtm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// payloadBytesMax is more than a door keeps.
const payloadBytesMax = 64 << 20

// Handle serves a branch: do gets who is called and the payload, and its result is answered as the protocol wants it,
// nil and nil as a plain success. do runs again whenever the door or a client repeats the call: use a barrier. A
// result must be JSON.
func Handle(do func(ctx context.Context, b Branch, payload []byte) ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := BranchOf(r)
		var payload, result []byte
		if err == nil {
			payload, err = io.ReadAll(http.MaxBytesReader(w, r.Body, payloadBytesMax))
		}
		if err == nil {
			result, err = do(r.Context(), b, payload)
		}
		Answer(w, result, err)
	})
}

// Answer writes what a branch call has come to: 409 for an error that wraps ErrFailure, 425 for ErrOngoing, 500 for any
// other; a nil error is a success with this JSON as its body.
func Answer(w http.ResponseWriter, result []byte, err error) {
	status, word := http.StatusOK, "SUCCESS"
	switch {
	case err == nil:
	case errors.Is(err, ErrFailure):
		status, word = http.StatusConflict, ErrFailure.Error()
	case errors.Is(err, ErrOngoing):
		status, word = http.StatusTooEarly, ErrOngoing.Error()
	default:
		status, word = http.StatusInternalServerError, ""
	}
	if err != nil || len(result) == 0 {
		answer := map[string]json.RawMessage{}
		if word != "" {
			answer["dtm_result"] = json.RawMessage(`"` + word + `"`)
		}
		if err != nil {
			text, _ := json.Marshal(err.Error()) // a string always has a JSON form
			answer["message"] = wordless(text)
		}
		result, _ = json.Marshal(answer) // and so have its parts
	} else {
		result = wordless(result)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(result) // a caller that is gone asks again
}

// wordless writes the protocol's words in JSON text so that they read the same and do not count: callers look for
// them anywhere in a body.
func wordless(text []byte) []byte {
	text = bytes.ReplaceAll(text, []byte("FAILURE"), []byte(`\u0046AILURE`))
	return bytes.ReplaceAll(text, []byte("ONGOING"), []byte(`\u004fNGOING`))
}
