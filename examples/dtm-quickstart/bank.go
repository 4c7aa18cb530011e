package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"

	"txmesh/sdk/dtm"
)

// prefix is where the first quick start had its handlers.
const prefix = "/api/busi_start"

// bank has two users with 100 each. Its calls may be repeated, late or for nothing: branches says what became of each.
type bank struct {
	mu       sync.Mutex // guards all below
	amounts  map[int]int
	branches map[string]state
	refusing bool
	calls    []string
}

// state is what is known of one branch; none is the zero value.
type state uint8

const (
	acted state = iota + 1
	compensated
)

func newBank() *bank {
	return &bank{amounts: map[int]int{1: 100, 2: 100}, branches: map[string]state{}}
}

// refuse has TransIn answer FAILURE from now on.
func (b *bank) refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refusing = true
}

func (b *bank) balances() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return fmt.Sprintf("user 1 has %d, user 2 has %d", b.amounts[1], b.amounts[2])
}

// flush returns the calls since the last flush.
func (b *bank) flush() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	calls := b.calls
	b.calls = nil
	return calls
}

// serve listens at an address, or at a free port if it is taken. It returns the URL before the names of the handlers.
func (b *bank) serve(address string) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		var again error
		if l, again = net.Listen("tcp", "127.0.0.1:0"); again != nil {
			return "", nil, errors.Join(err, again)
		}
	}
	mux := http.NewServeMux()
	mux.Handle(prefix+"/TransOut", b.handler("TransOut", 1, -1))
	mux.Handle(prefix+"/TransOutCompensate", b.handler("TransOutCompensate", 1, +1))
	mux.Handle(prefix+"/TransIn", b.handler("TransIn", 2, +1))
	mux.Handle(prefix+"/TransInCompensate", b.handler("TransInCompensate", 2, -1))
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()  // ends when it is closed
	stop = func() { _ = server.Close() } // nobody waits for what it serves
	return "http://" + l.Addr().String() + prefix, stop, nil
}

// handler answers 200 always, as the first quick start did: the word in the body decides.
func (b *bank) handler(name string, user, sign int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		branch, err := dtm.BranchOf(r)
		var payload struct {
			Amount int `json:"amount"`
		}
		if err == nil {
			err = json.NewDecoder(r.Body).Decode(&payload)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		word := "SUCCESS"
		if !b.move(name, branch, user, sign*payload.Amount) {
			word = "FAILURE"
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"dtm_result":"`+word+`"}`) // a door that is gone asks again
	})
}

// move does what a call asks for, if it must be done, and reports whether the call is a success.
func (b *bank) move(name string, branch dtm.Branch, user, delta int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := branch.GID + "-" + branch.ID
	was := b.branches[key]
	did := fmt.Sprintf("%+d for user %d", delta, user)
	switch {
	case name == "TransIn" && b.refusing:
		b.calls = append(b.calls, name+": FAILURE")
		return false
	case branch.Op == dtm.OpAction && was == 0:
		b.branches[key] = acted
		b.amounts[user] += delta
	case branch.Op == dtm.OpCompensate && was == acted:
		b.branches[key] = compensated
		b.amounts[user] += delta
	case branch.Op == dtm.OpCompensate && was == 0:
		b.branches[key] = compensated // an action that is late must not work any more
		did = "nothing to take back"
	default:
		did = "done before"
	}
	b.calls = append(b.calls, name+": "+did)
	return true
}
