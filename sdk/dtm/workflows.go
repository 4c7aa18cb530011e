package dtm

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
)

// Workflows runs the workflows of one process. It is an http.Handler for the door's calls that resume one, to be
// mounted at ResumeURL. Its methods may be called by many goroutines; its fields do not change after the first call.
type Workflows struct {
	Server    string       // base URL of the door
	HTTP      *http.Client // nil means http.DefaultClient
	ResumeURL string       // where the door reaches this handler
	Options

	mu      sync.Mutex // guards funcs, running
	funcs   map[string]WorkflowFunc
	running map[string]bool // by gid
}

// NewWorkflows returns a runner without workflows.
func NewWorkflows(server, resumeURL string) *Workflows {
	return &Workflows{Server: server, ResumeURL: resumeURL, funcs: map[string]WorkflowFunc{}, running: map[string]bool{}}
}

// Register gives a name to a workflow. All processes that share a ResumeURL must register the same before they serve it.
func (w *Workflows) Register(name string, f WorkflowFunc) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if name == "" || w.funcs[name] != nil {
		return fmt.Errorf("workflow %q: is registered already, or has no name; choose another name", name)
	}
	w.funcs[name] = f
	return nil
}

// Execute runs a workflow from its beginning or from where it was left, and returns its result. An error that wraps
// ErrFailure is final: it was rolled back. After any other the door resumes it later, and Execute may be called again.
func (w *Workflows) Execute(ctx context.Context, name, gid string, data []byte) ([]byte, error) {
	f, err := w.enter(name, gid)
	if err != nil {
		return nil, err
	}
	defer w.leave(gid)
	global := &Global{Server: w.Server, HTTP: w.HTTP, GID: gid, Options: w.Options}
	p, err := w.prepare(ctx, global, name, data)
	if err != nil {
		return nil, unrefused(err)
	}
	switch p.Transaction.Status {
	case StatusSucceed:
		return base64.StdEncoding.DecodeString(p.Transaction.Result)
	case StatusFailed:
		return nil, failure(p.Transaction.RollbackReason)
	case StatusPrepared:
	default:
		return nil, fmt.Errorf("workflow %s: the door says it is %q; is the gid that of another transaction?", gid, p.Transaction.Status)
	}
	wf := &Workflow{GID: gid, global: global, records: p.records()}
	result, err := f(ctx, wf, data)
	if wf.stopped != nil {
		return nil, wf.stopped
	}
	if err != nil && !errors.Is(err, ErrFailure) {
		return nil, err
	}
	if err := wf.finish(ctx, result, err); err != nil {
		return nil, err
	}
	return result, nil
}

// finish settles the branches and tells the door the end. Its error is that of the workflow.
func (wf *Workflow) finish(ctx context.Context, result []byte, failed error) error {
	if err := wf.settleAll(ctx, failed == nil); err != nil {
		return err
	}
	b := wf.global.body(TypeWorkflow)
	b.ReqExtra = map[string]string{"status": StatusSucceed, "result": base64.StdEncoding.EncodeToString(result)}
	if failed != nil {
		b.ReqExtra = map[string]string{"status": StatusFailed, "rollback_reason": failed.Error()}
	}
	if _, err := wf.global.post(ctx, "submit", b); err != nil {
		return unrefused(err) // the next run finds everything recorded and submits again
	}
	return failed
}

// progress is the door's answer to prepareWorkflow.
type progress struct {
	Transaction Transaction `json:"transaction"`
	Progresses  []Row       `json:"progresses"`
}

func (w *Workflows) prepare(ctx context.Context, g *Global, name string, data []byte) (progress, error) {
	custom, err := json.Marshal(struct {
		Name string `json:"name"`
		Data []byte `json:"data"`
	}{name, data})
	if err != nil {
		return progress{}, err
	}
	b := g.body(TypeWorkflow)
	b.CustomData, b.QueryPrepared, b.Protocol = string(custom), w.ResumeURL, "http"
	answer, err := g.post(ctx, "prepareWorkflow", b)
	if err != nil {
		return progress{}, err
	}
	var p progress
	if err := json.Unmarshal(answer, &p); err != nil {
		return progress{}, fmt.Errorf("workflow %s: read what the door knows: %w", g.GID, err)
	}
	return p, nil
}

func (p progress) records() map[string]record {
	records := map[string]record{}
	for _, r := range p.Progresses {
		records[r.BranchID+"-"+r.Op] = record{failed: r.Status == StatusFailed, data: r.Data}
	}
	return records
}

// enter keeps two runs of one gid apart, as far as they are in this process: both would run the same action.
func (w *Workflows) enter(name, gid string) (WorkflowFunc, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f := w.funcs[name]
	if f == nil {
		return nil, fmt.Errorf("workflow %q: is not registered in this process; call Register before it is executed or resumed", name)
	}
	if w.running[gid] {
		return nil, fmt.Errorf("workflow %s: runs already: %w", gid, ErrOngoing)
	}
	w.running[gid] = true
	return f, nil
}

func (w *Workflows) leave(gid string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, gid)
}

// ServeHTTP resumes a workflow for the door, which sends its name as the op and its data as the body.
func (w *Workflows) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	b, err := BranchOf(r)
	if err == nil {
		var data []byte
		if data, err = io.ReadAll(http.MaxBytesReader(rw, r.Body, payloadBytesMax)); err == nil {
			_, err = w.Execute(r.Context(), b.Op, b.GID, data)
		}
	}
	Answer(rw, nil, err)
}
