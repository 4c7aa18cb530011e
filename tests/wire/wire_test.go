package wire

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"txmesh/sidecar"
)

// The ways: the transport of the API and of the calls to branches.
const (
	overHTTP = "http"
	overGRPC = "grpc"
	overRPC  = "json-rpc"
)

func TestTables(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata: %v", err)
	}
	for _, file := range files {
		for _, way := range waysOf(t, file) {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".txt")+"/"+way, func(t *testing.T) {
				t.Parallel()
				w := &world{t: t, way: way, dir: t.TempDir(), service: newService(t)}
				datadriven.RunTest(t, file, w.run)
			})
		}
	}
}

// waysOf reads the first line of a file: "# over http grpc".
func waysOf(t *testing.T, file string) []string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Scan()
	list, ok := strings.CutPrefix(s.Text(), "# over ")
	ways := strings.Fields(list)
	for _, way := range ways {
		ok = ok && slices.Contains([]string{overHTTP, overGRPC, overRPC}, way)
	}
	if !ok || len(ways) == 0 {
		t.Fatalf("%s: the first line is %q, want \"# over http grpc json-rpc\" or some of them", file, s.Text())
	}
	return ways
}

// world is one sidecar and the service of its branches.
type world struct {
	t       *testing.T
	way     string
	dir     string
	doors   int // opened so far, each with a journal of its own
	flags   []string
	door    *door // nil: opened when it is needed
	service *service
	clock   time.Time
}

// door is a running sidecar.
type door struct {
	sidecar.Addresses
	client client
	stop   context.CancelFunc
	done   chan error
}

func (w *world) run(t *testing.T, d *datadriven.TestData) string {
	t.Helper()
	verbs := map[string]func(*datadriven.TestData) string{"door": w.doDoor, "restart": w.doRestart, "ask": w.doAsk, "http": w.doHTTP,
		"grpc": w.doGRPC, "answers": w.doAnswers, "release": w.doRelease, "metrics": w.doMetrics, "page": w.doPage, "again": w.doAgain, "large": w.doLarge, "clock": w.doClock, "pause": w.doPause, "stop-meanwhile": w.doStopMeanwhile,
		"reflect": func(*datadriven.TestData) string { return reflected(w.t, w.running().DTMGRPC) }, "calls": w.doCalls, "await": w.doAwait, "state": w.doState}
	do := verbs[d.Cmd]
	if do == nil {
		d.Fatalf(t, "directive %q is not known", d.Cmd)
	}
	d.Input = w.service.fill(d.Input, w.way)
	out := w.service.hide(do(d), w.way)
	if out != "" && !strings.HasSuffix(out, "\n") {
		out += "\n"
	}
	return out
}

// doDoor opens a sidecar with a new journal; the arguments are its keys without "dtm-", or its limits.
func (w *world) doDoor(d *datadriven.TestData) string {
	w.close()
	w.doors++
	w.flags = nil
	for _, a := range d.CmdArgs {
		key := "--dtm-" + a.Key
		if strings.HasPrefix(a.Key, "max-") {
			key = "--" + a.Key
		}
		w.flags = append(w.flags, key, w.service.fill(strings.Join(a.Vals, ","), w.way))
	}
	w.open()
	return ""
}

// doRestart opens it again over the same journal.
func (w *world) doRestart(*datadriven.TestData) string {
	w.close()
	w.open()
	return ""
}

// The defaults of the tests; a file that is about a default names the keys. A client names whole seconds only.
func (w *world) open() {
	w.t.Helper()
	args := append([]string{"--dtm", "127.0.0.1:0", "--dtm-grpc", "127.0.0.1:0", "--peer", "127.0.0.1:0", "--api", "127.0.0.1:0",
		"--data-dir", filepath.Join(w.dir, fmt.Sprint(w.doors)), "--grace-period", "1ms", "--dtm-retry-interval", "50ms",
		"--dtm-retry-max", "10s", "--dtm-resume-after", "50ms"}, w.flags...)
	cfg, err := sidecar.Load(args, nil, func(string) {})
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := sidecar.New(cfg, "v0.0.0-test", slog.New(slog.NewTextHandler(w.t.Output(), nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	w.door = &door{stop: stop, done: make(chan error, 1)}
	ready := make(chan sidecar.Addresses, 1)
	go func() {
		err := s.Run(ctx, func(a sidecar.Addresses) { ready <- a })
		w.door.done <- errors.Join(err, s.Close())
	}()
	select {
	case w.door.Addresses = <-ready:
	case err := <-w.door.done:
		w.t.Fatalf("sidecar ended: %v", err)
	}
	w.door.client = newClient(w.t, w.way, w.door.Addresses)
	w.t.Cleanup(w.close)
}

func (w *world) close() {
	if w.door == nil {
		return
	}
	w.door.stop()
	if err := <-w.door.done; err != nil {
		w.t.Logf("sidecar ended: %v", err) // what was left open is the matter of the file
	}
	w.door = nil
}

func (w *world) running() *door {
	if w.door == nil {
		w.open()
	}
	return w.door
}

// doAsk makes one request of the API: `ask submit` and the body as HTTP has it.
func (w *world) doAsk(d *datadriven.TestData) string {
	answer := w.running().client.ask(d.CmdArgs[0].Key, d.Input)
	// How an error is told differs between transports, and who notices first that there is no answer between runs.
	answer = regexp.MustCompile(`(answered \d+|error -\d+): `).ReplaceAllString(answer, "error: ")
	silence := regexp.MustCompile(`(error: |POST \S+: )?(context deadline exceeded|no answer within [^;]+|stream terminated by RST_STREAM[^;]+)`)
	return silence.ReplaceAllString(answer, "no answer")
}

// doHTTP shows a request as it is: verb and path below the base, the body behind it.
func (w *world) doHTTP(d *datadriven.TestData) string {
	line, body, _ := strings.Cut(d.Input, "\n")
	verb, path, _ := strings.Cut(line, " ")
	if !strings.HasPrefix(path, "/") {
		path = "/api/dtmsvr/" + path
	}
	status, header, text := send(w.t, verb, "http://"+w.running().DTM+path, body)
	out := fmt.Sprint(status)
	if v := header.Get("Retry-After"); v != "" {
		out += " Retry-After: " + v
	}
	return out + "\n" + pretty(text, d.HasArg("short"))
}

// doLarge sends a body of 8 KiB.
func (w *world) doLarge(d *datadriven.TestData) string {
	body := `{"gid":"large","trans_type":"saga","branch_id":"01","custom_data":"` + strings.Repeat(" ", 8<<10) + `"}`
	status, _, text := send(w.t, "POST", "http://"+w.running().DTM+"/api/dtmsvr/"+d.CmdArgs[0].Key, body)
	return fmt.Sprintf("%d %s", status, text)
}

// doGRPC shows a request of gRPC as it is: a method, and the message as JSON.
func (w *world) doGRPC(d *datadriven.TestData) string {
	return grpcRaw(w.t, w.running().DTMGRPC, d.CmdArgs[0].Key, d.Input)
}

// doPage follows a listing to its end, one line a page.
func (w *world) doPage(d *datadriven.TestData) string {
	query, position := d.Input, ""
	var pages []string
	for {
		status, _, text := send(w.t, "GET", "http://"+w.running().DTM+"/api/dtmsvr/all?"+query+"&position="+url.QueryEscape(position), "")
		var page struct {
			Transactions []struct {
				GID string `json:"gid"`
			} `json:"transactions"`
			Next string `json:"next_position"`
		}
		if err := json.Unmarshal([]byte(text), &page); err != nil || status != 200 {
			return fmt.Sprintf("%d %s", status, text)
		}
		var gids []string
		for _, t := range page.Transactions {
			gids = append(gids, t.GID)
		}
		pages = append(pages, strings.Join(gids, " "))
		if position = page.Next; position == "" {
			return strings.Join(pages, "\n")
		}
	}
}

// doClock starts the clock that `calls since=1s` reads.
func (w *world) doClock(*datadriven.TestData) string {
	w.clock = time.Now()
	return ""
}

// doPause lets time go by, where time is the subject.
func (w *world) doPause(d *datadriven.TestData) string {
	t, err := time.ParseDuration(d.CmdArgs[0].Key)
	if err != nil {
		d.Fatalf(w.t, "pause: %v", err)
	}
	time.Sleep(t)
	return ""
}

// doAgain shows the pauses that are noted after tries without success: `again GID 3` shows three, and after each of them asks for
// the next try at once. With wait it waits for the next try.
func (w *world) doAgain(d *datadriven.TestData) string {
	gid, n := d.CmdArgs[0].Key, 0
	if _, err := fmt.Sscan(d.CmdArgs[1].Key, &n); err != nil {
		d.Fatalf(w.t, "again: %v", err)
	}
	base, wait := "http://"+w.running().DTM+"/api/dtmsvr/", d.HasArg("wait")
	var pauses []string
	last := time.Time{}
	for deadline := time.Now().Add(patience); len(pauses) < n && time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		_, _, text := send(w.t, "GET", base+"query?gid="+gid, "")
		var q struct {
			Transaction struct {
				Updated time.Time `json:"update_time"`
				Next    time.Time `json:"next_cron_time"`
			} `json:"transaction"`
		}
		if err := json.Unmarshal([]byte(text), &q); err != nil {
			return err.Error()
		}
		next := q.Transaction.Next
		pause := next.Sub(q.Transaction.Updated)
		if pause <= 0 || next.Equal(last) || !wait && pause < time.Minute {
			continue
		}
		last, pauses = next, append(pauses, "in "+pause.Round(10*time.Millisecond).String())
		if !wait && len(pauses) < n {
			send(w.t, "POST", base+"resetNextCronTime", fmt.Sprintf(`{"gid":%q}`, gid))
		}
	}
	return strings.Join(pauses, "\n")
}

// doStopMeanwhile submits, waits for a call to hang, and stops the transaction by force.
func (w *world) doStopMeanwhile(d *datadriven.TestData) string {
	answer, client := make(chan string, 1), w.running().client
	w.service.take(0)
	go func() { answer <- client.ask("submit", d.Input) }()
	if calls := w.service.take(1); len(calls) != 1 || calls[0].name != d.CmdArgs[0].Key {
		return fmt.Sprint("calls: ", len(calls))
	}
	status, _, text := send(w.t, "POST", "http://"+w.door.DTM+"/api/dtmsvr/forceStop", fmt.Sprintf(`{"gid":%q}`, d.CmdArgs[1].Key))
	return fmt.Sprintf("%d %s\n%s", status, text, <-answer)
}

// doMetrics shows which series of the named metrics there are.
func (w *world) doMetrics(d *datadriven.TestData) string {
	_, _, text := send(w.t, "GET", "http://"+w.running().DTM+"/api/metrics", "")
	var lines []string
	for _, line := range strings.Split(text, "\n") {
		for _, a := range d.CmdArgs {
			if strings.HasPrefix(line, a.Key+"{") {
				lines = append(lines, line[:strings.LastIndexByte(line, ' ')])
			}
		}
	}
	return strings.Join(lines, "\n")
}

// doAnswers scripts what a branch answers, one line a call; the last one stays.
func (w *world) doAnswers(d *datadriven.TestData) string {
	w.service.script(d.CmdArgs[0].Key, strings.Split(d.Input, "\n"))
	return ""
}

// doRelease lets the calls go on that hang.
func (w *world) doRelease(d *datadriven.TestData) string {
	w.service.release(d.CmdArgs[0].Key)
	return ""
}

// quiet is how long a file waits for calls that must not come.
const quiet = 50 * time.Millisecond

// doCalls shows the calls that came since the last time: `calls 3` waits for three of them, `calls` for none. With raw all of
// them is shown, sorted is for calls that leave together, and since tells how long after the clock the last one came, in the unit
// given.
func (w *world) doCalls(d *datadriven.TestData) string {
	n := 0
	var since time.Duration
	raw, sorted := false, false
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "raw":
			raw = true
		case "sorted":
			sorted = true
		case "since":
			u, err := time.ParseDuration(a.Vals[0])
			if err != nil {
				d.Fatalf(w.t, "since: %v", err)
			}
			since = u
		default:
			if _, err := fmt.Sscan(a.Key, &n); err != nil {
				d.Fatalf(w.t, "calls %s: %v", a.Key, err)
			}
		}
	}
	if n == 0 {
		time.Sleep(quiet)
	}
	var lines []string
	calls := w.service.take(n)
	for _, c := range calls {
		line := c.line()
		if raw {
			line = c.raw()
		}
		lines = append(lines, line)
	}
	if since > 0 {
		lines = append(lines, "after "+times(calls[len(calls)-1].at.Sub(w.clock), since))
	}
	if sorted {
		slices.Sort(lines)
	}
	if len(lines) == 0 {
		return "none"
	}
	return strings.Join(lines, "\n")
}

// times rounds down to a power of two of the unit: a busy machine is late, never early.
func times(d, unit time.Duration) string {
	if d < unit*9/10 {
		return "less than 1"
	}
	n := 1
	for d >= 2*time.Duration(n)*unit*9/10 {
		n *= 2
	}
	return fmt.Sprint(n)
}

// patience bounds every wait of these tests for what must come.
const patience = 20 * time.Second

// doAwait waits for a status, and for a row of a branch to be done if one is named as 01-action. It shows the transaction in
// short.
func (w *world) doAwait(d *datadriven.TestData) string {
	gid, want, row := d.CmdArgs[0].Key, d.CmdArgs[1].Key, ""
	if len(d.CmdArgs) > 2 {
		row = "\n" + strings.ReplaceAll(d.CmdArgs[2].Key, "-", " ") + " succeed"
	}
	deadline := time.Now().Add(patience)
	for {
		got, q := w.query(gid)
		if got == want && strings.Contains(q, row) || time.Now().After(deadline) {
			return q
		}
		time.Sleep(5 * time.Millisecond) // another process would be polled too
	}
}

// doState shows a transaction in short.
func (w *world) doState(d *datadriven.TestData) string {
	_, q := w.query(d.CmdArgs[0].Key)
	return q
}

// queried is what the short form needs of a query.
type queried struct {
	Transaction *struct {
		Status string `json:"status"`
		Reason string `json:"rollback_reason"`
		Result string `json:"result"`
	} `json:"transaction"`
	Branches []struct {
		ID     string `json:"branch_id"`
		Op     string `json:"op"`
		Status string `json:"status"`
	} `json:"branches"`
}

func (w *world) query(gid string) (status, short string) {
	code, _, text := send(w.t, "GET", "http://"+w.running().DTM+"/api/dtmsvr/query?gid="+gid, "")
	var q queried
	if err := json.Unmarshal([]byte(text), &q); err != nil || code != 200 {
		w.t.Fatalf("query of %s: %d %s: %v", gid, code, text, err)
	}
	if q.Transaction == nil {
		return "", "unknown"
	}
	var b strings.Builder
	b.WriteString(q.Transaction.Status)
	if r := q.Transaction.Reason; r != "" {
		b.WriteString(": " + r)
	}
	if r := q.Transaction.Result; r != "" {
		b.WriteString(" with " + r)
	}
	for _, x := range q.Branches {
		fmt.Fprintf(&b, "\n%s %s %s", x.ID, x.Op, x.Status)
	}
	return q.Transaction.Status, b.String()
}
