package dtm

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// recorder is a door and services in one: it writes down what comes and answers what it is told to.
type recorder struct {
	*httptest.Server
	answer func(line string) (int, string) // nil: always 200 and SUCCESS

	mu    sync.Mutex // guards lines
	lines []string
}

const success = `{"dtm_result":"SUCCESS"}`

func newRecorder(t *testing.T) *recorder {
	rec := &recorder{}
	rec.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		line := r.Method + " " + r.URL.Path
		if r.URL.RawQuery != "" {
			line += "?" + strings.ReplaceAll(query(r), rec.URL, "DOOR")
		}
		if h := r.Header.Get("X-Tenant"); h != "" {
			line += " X-Tenant:" + h
		}
		line += " " + strings.ReplaceAll(canonical(string(body)), rec.URL, "DOOR")
		rec.mu.Lock()
		rec.lines = append(rec.lines, strings.TrimSpace(line))
		rec.mu.Unlock()
		status, text := http.StatusOK, success
		if rec.answer != nil {
			status, text = rec.answer(strings.TrimSpace(line))
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}))
	t.Cleanup(rec.Close)
	return rec
}

func query(r *http.Request) string {
	var parts []string
	for _, name := range []string{"dtm", "gid", "trans_type", "branch_id", "op", "phase2_url", "own"} {
		if v, ok := r.URL.Query()[name]; ok {
			parts = append(parts, name+"="+strings.Join(v, ","))
		}
	}
	return strings.Join(parts, "&")
}

// canonical sorts the keys of JSON.
func canonical(text string) string {
	var value map[string]any
	if json.Unmarshal([]byte(text), &value) != nil {
		return text
	}
	sorted, _ := json.Marshal(value)
	return string(sorted)
}

func (rec *recorder) door() string { return rec.URL + "/api/dtmsvr" }

// wants compares all that has come, in order.
func (rec *recorder) wants(t *testing.T, want ...string) {
	t.Helper()
	rec.mu.Lock()
	defer rec.mu.Unlock()
	for i, line := range want {
		if method, body, ok := strings.Cut(line, "{"); ok {
			want[i] = method + canonical("{"+body)
		}
	}
	if diff := cmp.Diff(want, rec.lines); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	rec.lines = nil
}

// failing answers some lines, by what they begin with.
func failing(answers map[string]string) func(string) (int, string) {
	return func(line string) (int, string) {
		for begin, answer := range answers {
			if strings.HasPrefix(line, begin) {
				switch answer {
				case "409":
					return http.StatusConflict, `{"dtm_result":"FAILURE","message":"no FAILURE"}`
				case "425":
					return http.StatusTooEarly, `{"dtm_result":"ONGOING","message":"wait"}`
				case "500":
					return http.StatusInternalServerError, `{"message":"broken"}`
				}
				return http.StatusOK, answer
			}
		}
		return http.StatusOK, success
	}
}
