package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"txmesh/tests/processes"
)

// migration is two sidecars that serve clients of DTM, and a service that notes what it was called for.
type migration struct {
	t        *testing.T
	dir      string
	tool     string
	from, to *dtmSidecar
	service  *noting
}

type dtmSidecar struct {
	processes.Process
	at struct {
		API, DTM  string
		TokenFile string `json:"token_file"`
	}
}

// noting answers 425 to calls of /hangs until it is released, 409 to those of /refuses, and does all others.
type noting struct {
	*httptest.Server
	mu       sync.Mutex // guards the rest
	released bool
	did      []string // "gid op branch"
	asked    int      // calls of /hangs that were not done
}

func newNoting(t *testing.T) *noting {
	n := &noting{}
	n.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.mu.Lock()
		defer n.mu.Unlock()
		q := r.URL.Query()
		switch {
		case strings.HasPrefix(r.URL.Path, "/refuses"):
			w.WriteHeader(http.StatusConflict)
		case strings.HasPrefix(r.URL.Path, "/hangs") && !n.released:
			n.asked++
			w.WriteHeader(http.StatusTooEarly)
		default:
			n.did = append(n.did, q.Get("gid")+" "+q.Get("op")+" "+q.Get("branch_id"))
		}
	}))
	t.Cleanup(n.Close)
	return n
}

func (n *noting) release() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.released = true
}

func (n *noting) state() (did []string, asked int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	did = slices.Clone(n.did)
	slices.Sort(did)
	return did, n.asked
}

func newMigration(t *testing.T) *migration {
	t.Helper()
	m := &migration{t: t, dir: t.TempDir(), service: newNoting(t)}
	m.tool = filepath.Join(demoBinaries(t), "txmesh")
	m.to = m.sidecar("to")
	return m
}

func (m *migration) sidecar(name string) *dtmSidecar {
	m.t.Helper()
	bin, err := build()
	if err != nil {
		m.t.Fatal(err)
	}
	s := &dtmSidecar{Process: processes.Process{Name: name, Path: bin.sidecar(), Log: filepath.Join(m.dir, name+".log"), Args: []string{
		"--dtm", "127.0.0.1:0", "--api", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--data-dir", filepath.Join(m.dir, name),
		"--dtm-retry-interval", "100ms", "--dtm-retry-max", "200ms", "--dtm-timeout-to-fail", "10m", "--dtm-resume-after", "10m"}}}
	if err := s.Start(&s.at); err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		s.Kill()
		if m.t.Failed() {
			m.t.Log(s.Tail())
		}
	})
	return s
}

// ask talks to a door.
func (m *migration) ask(s *dtmSidecar, path string, body any) (int, string) {
	m.t.Helper()
	method, text := http.MethodGet, []byte(nil)
	if body != nil {
		var err error
		if text, err = json.Marshal(body); err != nil {
			m.t.Fatal(err)
		}
		method = http.MethodPost
	}
	r, err := http.NewRequest(method, "http://"+s.at.DTM+"/api/dtmsvr/"+path, bytes.NewReader(text))
	if err != nil {
		m.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		m.t.Fatal(err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		m.t.Fatal(err)
	}
	return res.StatusCode, string(answer)
}

type object = map[string]any

func (m *migration) must(s *dtmSidecar, path string, body object) {
	m.t.Helper()
	if status, text := m.ask(s, path, body); status != 200 {
		m.t.Fatalf("%s %v = %d %s", path, body, status, text)
	}
}

// status is what query says.
func (m *migration) status(s *dtmSidecar, gid string) string {
	m.t.Helper()
	_, text := m.ask(s, "query?gid="+gid, nil)
	return decode[struct{ Transaction struct{ Status string } }](m.t, text).Transaction.Status
}

func (m *migration) reaches(s *dtmSidecar, gid, want string) {
	m.t.Helper()
	deadline := time.Now().Add(processes.ReadyMax)
	for got := ""; got != want; time.Sleep(10 * time.Millisecond) {
		if got = m.status(s, gid); time.Now().After(deadline) {
			m.t.Fatalf("%s at %s is %q, want %q", gid, s.Name, got, want)
		}
	}
}

func (m *migration) steps(gid, transType string, urls ...string) object {
	var steps []object
	var payloads []string
	for _, u := range urls {
		action, compensate, _ := strings.Cut(u, " ")
		steps = append(steps, object{"action": m.service.URL + action, "compensate": m.service.URL + compensate})
		payloads = append(payloads, `{"amount":30}`)
	}
	return object{"gid": gid, "trans_type": transType, "steps": steps, "payloads": payloads}
}

// prepared opens a tcc or xa with two branches, the first of which hangs.
func (m *migration) prepared(gid, transType string) object {
	body := object{"gid": gid, "trans_type": transType}
	m.must(m.from, "prepare", body)
	for i, path := range []string{"/hangs", "/does"} {
		url := m.service.URL + path
		m.must(m.from, "registerBranch", object{"gid": gid, "trans_type": transType, "branch_id": fmt.Sprintf("%02d", i+1),
			"confirm": url, "cancel": url, "url": url, "data": "{}"})
	}
	return body
}

// fill begins a transaction of each type in each unfinished status, and two that have ended.
func (m *migration) fill() {
	m.must(m.from, "submit", m.steps("saga-submitted", "saga", "/does /does", "/hangs /does", "/does /does"))
	m.must(m.from, "submit", m.steps("saga-aborting", "saga", "/does /hangs", "/refuses /does", "/does /does"))
	for _, transType := range []string{"tcc", "xa"} {
		m.prepared(transType+"-prepared", transType)
		m.must(m.from, "submit", m.prepared(transType+"-submitted", transType))
		m.must(m.from, "abort", m.prepared(transType+"-aborting", transType))
	}
	msg := m.steps("msg-prepared", "msg", "/does", "/does")
	msg["query_prepared"] = m.service.URL + "/does"
	m.must(m.from, "prepare", msg)
	m.must(m.from, "submit", m.steps("msg-submitted", "msg", "/does", "/hangs", "/does"))
	flow := object{"gid": "workflow-prepared", "trans_type": "workflow", "query_prepared": m.service.URL + "/does", "custom_data": `{"name":"w","data":"e30="}`}
	m.must(m.from, "prepareWorkflow", flow)
	m.must(m.from, "registerBranch", object{"gid": "workflow-prepared", "trans_type": "workflow", "branch_id": "01", "op": "action", "status": "succeed", "data": "done"})
	m.must(m.from, "submit", m.steps("saga-succeed", "saga", "/does /does"))
	m.must(m.from, "submit", m.steps("saga-failed", "saga", "/does /does", "/refuses /does"))
	m.reaches(m.from, "saga-succeed", "succeed")
	m.reaches(m.from, "saga-failed", "failed")
	m.did("what can be done at the source", doneAtSource)
}

// What the service has done before the migration, and all that it must have done in the end, each once.
var (
	doneAtSource = []string{
		"msg-submitted action 01", "saga-aborting action 01", "saga-aborting compensate 02",
		"saga-failed action 01", "saga-failed compensate 01", "saga-failed compensate 02", "saga-submitted action 01",
		"saga-succeed action 01", "tcc-aborting cancel 02", "tcc-submitted confirm 02",
		"xa-aborting rollback 02", "xa-submitted commit 02"}
	doneAtTarget = []string{
		"msg-prepared action 01", "msg-prepared action 02", "msg-submitted action 02", "msg-submitted action 03",
		"saga-aborting compensate 01", "saga-submitted action 02", "saga-submitted action 03",
		"tcc-aborting cancel 01", "tcc-prepared confirm 01", "tcc-prepared confirm 02", "tcc-submitted confirm 01",
		"xa-aborting rollback 01", "xa-prepared commit 01", "xa-prepared commit 02", "xa-submitted commit 01"}
)

// did waits until the service has done these, each once and nothing else.
func (m *migration) did(what string, want ...[]string) {
	m.t.Helper()
	all := slices.Concat(want...)
	slices.Sort(all)
	deadline := time.Now().Add(processes.ReadyMax)
	for {
		got, _ := m.service.state()
		if slices.Equal(got, all) {
			return
		}
		if len(got) > len(all) || time.Now().After(deadline) {
			m.t.Fatalf("%s differs (-want +got):\n%s", what, cmp.Diff(all, got))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *migration) command(source string, args ...string) *exec.Cmd {
	c := exec.Command(m.tool, append([]string{"migrate", "dtm", "--from", source, "--to", m.to.at.API, "--token-file", m.to.at.TokenFile,
		"--journal", filepath.Join(m.dir, "journal")}, args...)...)
	c.Env = processes.Environ()
	return c
}

// run runs the tool to its end.
func (m *migration) run(source string, args ...string) (int, string) {
	m.t.Helper()
	out, err := m.command(source, args...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), string(out)
	} else if err != nil {
		m.t.Fatal(err)
	}
	return 0, string(out)
}

func (m *migration) source() string { return "http://" + m.from.at.DTM }

// finish lets clients and the service go on at the target.
func (m *migration) finish() {
	m.service.release()
	for _, transType := range []string{"tcc", "xa", "msg"} {
		m.must(m.to, "submit", object{"gid": transType + "-prepared", "trans_type": transType})
	}
	m.must(m.to, "submit", object{"gid": "workflow-prepared", "trans_type": "workflow", "req_extra": object{"status": "succeed", "result": "eA=="}})
	for gid, want := range map[string]string{"saga-submitted": "succeed", "saga-aborting": "failed", "tcc-prepared": "succeed", "tcc-submitted": "succeed",
		"tcc-aborting": "failed", "xa-prepared": "succeed", "xa-submitted": "succeed", "xa-aborting": "failed", "msg-prepared": "succeed",
		"msg-submitted": "succeed", "workflow-prepared": "succeed", "saga-succeed": "succeed", "saga-failed": "failed"} {
		m.reaches(m.to, gid, want)
	}
	m.did("all that was done", doneAtSource, doneAtTarget)
}

// Every transaction of a server that runs ends at the other one: nothing that was done is done again, nothing is left out.
func TestMigrateFromARunningServer(t *testing.T) {
	t.Parallel()
	m := newMigration(t)
	m.from = m.sidecar("from")
	m.fill()

	code, out := m.run(m.source())
	if code != 2 || !strings.Contains(out, "9 unfinished transactions would be taken over") || !strings.Contains(out, "2 unfinished transactions would stay") ||
		!strings.Contains(out, "2 finished transactions would be kept") || !strings.Contains(out, "--clients-stopped") || !strings.Contains(out, "nothing was changed") {
		t.Errorf("dry run = %d\n%s", code, out)
	}
	if got := m.status(m.to, "saga-submitted"); got != "" {
		t.Errorf("a dry run has brought a saga that is %s", got)
	}
	if _, err := os.Stat(filepath.Join(m.dir, "journal")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a dry run has written the journal: %v", err)
	}

	if code, out = m.run(m.source(), "--apply"); code != 2 || !strings.Contains(out, "2 unfinished transactions not taken over") {
		t.Errorf("apply = %d\n%s", code, out)
	}
	if got := m.status(m.from, "tcc-prepared"); got != "prepared" {
		t.Errorf("the tcc that stays is %s", got)
	}
	if code, out = m.run(m.source(), "--apply", "--clients-stopped"); code != 0 || !strings.Contains(out, "had been taken over before") {
		t.Errorf("apply with stopped clients = %d\n%s", code, out)
	}
	m.from.Kill() // it has nothing to do any more
	m.finish()
}

// A migration that is killed between any two steps goes on when it is run again.
func TestKilledMigrationGoesOn(t *testing.T) {
	t.Parallel()
	m := newMigration(t)
	m.from = m.sidecar("from")
	m.fill()
	journal := filepath.Join(m.dir, "journal")
	kills := 0
	for lines := 2; lines < 40; lines++ {
		c := m.command(m.source(), "--apply", "--clients-stopped")
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		killed := false
		for done := false; !done; {
			select {
			case err := <-ended:
				if done = true; err == nil {
					lines = 40 // all was taken
				} else if !killed {
					t.Fatalf("apply: %v", err)
				}
			default:
				text, err := os.ReadFile(journal)
				if !killed && err == nil && bytes.Count(text, []byte("\n")) >= lines {
					killed = true
					_ = c.Process.Kill() // it may have ended meanwhile
					kills++
				}
			}
		}
	}
	t.Logf("%d kills", kills)
	if kills < 10 {
		t.Errorf("%d kills, want 10 at least", kills)
	}
	if code, out := m.run(m.source(), "--apply", "--clients-stopped"); code != 0 {
		t.Fatalf("the last run = %d\n%s", code, out)
	}
	m.from.Kill()
	m.finish()
}

// Whoever has lost the journal does no harm: what is here is compared, not begun again.
func TestMigrateWithoutItsJournalBeginsNothingTwice(t *testing.T) {
	t.Parallel()
	m := newMigration(t)
	m.from = m.sidecar("from")
	m.fill()
	for range 2 {
		if code, out := m.run(m.source(), "--apply", "--clients-stopped"); code != 0 {
			t.Errorf("apply = %d\n%s", code, out)
		}
		if err := os.Remove(filepath.Join(m.dir, "journal")); err != nil {
			t.Error(err)
		}
	}
	m.finish()
}
