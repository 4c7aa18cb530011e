package dtm

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"

	"txmesh/txn"
)

// note is what the door needs of a transaction later; it is journaled with it, as Spec.Note. Numbers are for ever.
type note struct {
	Protocol   string              `cbor:"1,keyasint,omitempty"`
	CustomData string              `cbor:"2,keyasint,omitempty"`
	Options    options             `cbor:"3,keyasint"`
	Concurrent bool                `cbor:"4,keyasint,omitempty"`
	Topics     []map[string]string `cbor:"5,keyasint,omitempty"` // the steps as they came, where they name topics
}

func (n note) encode() []byte {
	b, err := cbor.Marshal(n)
	if err != nil {
		panic("dtm: note: " + err.Error())
	}
	return b
}

func decodeNote(b []byte) (note, error) {
	var n note
	if err := cbor.Unmarshal(b, &n); err != nil {
		return n, fmt.Errorf("note of the transaction: %w", err)
	}
	return n, nil
}

// customData is what custom_data of sagas and messages may say.
type customData struct {
	Concurrent bool             `json:"concurrent"`
	Orders     map[string][]int `json:"orders"`
	Delay      float64          `json:"delay"`
}

func (t *transaction) custom() (customData, error) {
	var c customData
	if t.CustomData == "" || t.Type != typeSaga && t.Type != typeMsg {
		return c, nil
	}
	if err := json.Unmarshal([]byte(t.CustomData), &c); err != nil {
		return c, invalid("custom_data: %v; want JSON text such as {\"concurrent\":true,\"orders\":{\"1\":[0]}} or {\"delay\":10}", err)
	}
	if c.Delay < 0 || c.Delay > secondsMax {
		return c, invalid("custom_data: delay %v: want seconds, 0 to %d", c.Delay, secondsMax)
	}
	return c, nil
}

// spec makes what a transaction is begun with.
func (s *Service) spec(ctx context.Context, t *transaction) (txn.Spec, error) {
	custom, err := t.custom()
	if err != nil {
		return txn.Spec{}, err
	}
	k, _ := kindOf(t.Type)
	mode := k.mode
	if t.Type == typeSaga && custom.Concurrent {
		mode = txn.SagaGraph
	}
	protocol := t.Protocol
	if protocol == protocolHTTP {
		protocol = "" // one way to say it, so that a request equals another one
	}
	n := note{Protocol: protocol, CustomData: t.CustomData, Options: t.options, Concurrent: t.Concurrent}
	spec := txn.Spec{ID: txn.ID(t.GID), Mode: mode, Plan: plan(t, mode), Name: Name, Door: Name}
	switch t.Type {
	case typeSaga:
		spec.Branches, err = sagaBranches(t, custom.Orders)
	case typeMsg:
		spec.Branches, n.Topics, err = s.msgBranches(ctx, t)
	}
	if err != nil {
		return spec, err
	}
	spec.Timeout = s.timeout(t)
	if t.QueryPrepared != "" && (t.Type == typeMsg || t.Type == typeWorkflow) {
		spec.Ask = []byte(t.QueryPrepared)
	}
	spec.Plan.Retry = txn.Retry{Delay: s.retryInterval(t), DelayMax: s.Defaults.RetryMax,
		TryTimeout: seconds(t.RequestTimeout, s.Defaults.RequestTimeout)}
	spec.Note = n.encode()
	return spec, nil
}

// timeout is the time to the decision: of a saga only if the client says so, of a workflow until it is called again. One that
// cannot be called waits for its client for ever.
func (s *Service) timeout(t *transaction) time.Duration {
	switch t.Type {
	case typeSaga:
		return seconds(t.TimeoutToFail, 0)
	case typeWorkflow:
		if t.QueryPrepared == "" {
			return 0
		}
		return seconds(t.RetryInterval, s.Defaults.ResumeAfter)
	default:
		return seconds(t.TimeoutToFail, s.Defaults.TimeoutToFail)
	}
}

func (s *Service) retryInterval(t *transaction) time.Duration {
	otherwise := s.Defaults.RetryInterval
	if t.Type == typeWorkflow {
		otherwise = s.Defaults.ResumeAfter
	}
	return seconds(t.RetryInterval, otherwise)
}

func sagaBranches(t *transaction, orders map[string][]int) ([]txn.Branch, error) {
	bs := make([]txn.Branch, len(t.Steps))
	for i, step := range t.Steps {
		bs[i] = txn.Branch{ID: branchID(i), Note: t.payload(i)}
		bs[i].Ops[txn.Forward], bs[i].Ops[txn.Undo] = target(step[opAction]), target(step[opCompensate])
	}
	for key, before := range orders {
		i, err := strconv.Atoi(key)
		if err != nil || i < 0 || i >= len(bs) {
			return nil, invalid("custom_data: orders: step %q: want a number from 0 to %d", key, len(bs)-1)
		}
		for _, j := range before {
			if j < 0 || j >= len(bs) {
				return nil, invalid("custom_data: orders: step %d follows %d: want a number from 0 to %d", i, j, len(bs)-1)
			}
			if id := branchID(j); !slices.Contains(bs[i].After, id) {
				bs[i].After = append(bs[i].After, id)
			}
		}
		sort.Strings(bs[i].After) // the same orders make the same branch
	}
	return bs, nil
}

// target is a URL; an empty one means that there is nothing to call.
func target(url string) []byte {
	if url == "" {
		return nil
	}
	return []byte(url)
}

// msgBranches makes a branch of each step, of one that names a topic one for each subscriber.
func (s *Service) msgBranches(ctx context.Context, t *transaction) (bs []txn.Branch, topics []map[string]string, err error) {
	for i, step := range t.Steps {
		urls, id := []string{step[opAction]}, branchID(i)
		topic, isTopic := strings.CutPrefix(step[opAction], topicPrefix)
		if isTopic {
			topics = t.Steps
			if urls, err = s.topics.urls(ctx, topic); err != nil {
				return nil, nil, err
			}
		}
		for j, url := range urls {
			b := txn.Branch{ID: id, Note: t.payload(i)}
			if len(urls) > 1 {
				b.ID = id + "-" + branchID(j)
			}
			b.Ops[txn.Commit] = target(url)
			bs = append(bs, b)
		}
	}
	return bs, topics, nil
}

// delay is how long a message waits after the submit, so that it goes out the wished time after it was prepared.
func (t *transaction) delay(st *txn.State, now time.Time) (time.Duration, error) {
	custom, err := t.custom()
	if err != nil || t.Type != typeMsg || custom.Delay == 0 {
		return 0, err
	}
	d := time.Duration(custom.Delay * float64(time.Second))
	if st != nil && !st.Expires.IsZero() {
		d -= now.Sub(st.Expires.Add(-st.Spec.Timeout))
	}
	return max(d, 0), nil
}
