package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/google/go-cmp/cmp"
)

const openings = "alice=100,bob=50,carol=closed,slow=10"

// TestEveryLanguageBehavesTheSame runs one history per service against each program that serves it.
func TestEveryLanguageBehavesTheSame(t *testing.T) {
	for _, i := range implementations() {
		t.Run(i.name, func(t *testing.T) {
			s := start(t, i, tempLedger(t), "--balances", openings)
			datadriven.RunTest(t, "testdata/"+i.service, func(t *testing.T, d *datadriven.TestData) string {
				return s.play(t, d)
			})
		})
	}
}

// play does one command of a history: call, crash (kill -9 and start), restart (SIGTERM and start), tear (crash,
// with the input left behind as a torn last line) and ledger (the entries on disk).
func (s *service) play(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "call":
		return s.playCall(t, d)
	case "crash":
		s.kill(t)
		s.start(t)
	case "restart":
		s.stop(t)
		s.start(t)
	case "tear":
		s.kill(t)
		f, err := os.OpenFile(s.data, os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(strings.TrimSuffix(d.Input, "\n")); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		s.start(t)
	case "ledger":
		var out strings.Builder
		for _, e := range readEntries(t, s.data) {
			fmt.Fprintf(&out, "%s id=%s account=%s amount=%d transfer=%s balance=%d key=%s status=%d\n",
				e.Kind, e.ID, e.Account, e.Amount, e.Transfer, e.Balance, e.Key, e.Status)
		}
		return out.String()
	default:
		t.Fatalf("unknown command %q", d.Cmd)
	}
	return ""
}

// playCall makes the request of the input: METHOD PATH and the body. bytes=N sends so many spaces instead.
func (s *service) playCall(t *testing.T, d *datadriven.TestData) string {
	request, text, _ := strings.Cut(d.Input, "\n")
	method, path, _ := strings.Cut(request, " ")
	var key string
	var spaces int
	d.MaybeScanArgs(t, "key", &key)
	d.MaybeScanArgs(t, "bytes", &spaces)
	if d.HasArg("quoted") {
		key = `"` + key + `"`
	}
	var body io.Reader = strings.NewReader(text + strings.Repeat(" ", spaces))
	if d.HasArg("chunked") {
		body = io.MultiReader(body)
	}
	r, err := s.send(method, path, key, body)
	if err != nil {
		t.Fatalf("%s: %s: %v; stderr: %s", s.i.name, request, err, s.stderr)
	}
	return fmt.Sprintf("%d\n%s\n", r.status, r.body)
}

// TestOneLedgerSuitsEveryLanguage starts each program on what another one wrote.
func TestOneLedgerSuitsEveryLanguage(t *testing.T) {
	for _, writer := range implementations() {
		for _, reader := range implementations() {
			if writer.service != reader.service || writer.name == reader.name {
				continue
			}
			t.Run(writer.name+" then "+reader.name, func(t *testing.T) {
				data, path := tempLedger(t), "/accounts/alice/"+writer.kind()+"s"
				w := start(t, writer, data, "--balances", openings)
				change := w.mustCall(t, "POST", path, "k1", `{"amount":30,"transfer":"t-1"}`)
				refused := w.mustCall(t, "POST", "/accounts/carol/"+writer.kind()+"s", "k2", `{"amount":1}`)
				undone := w.mustCall(t, "DELETE", path+"/"+writer.kind()[:1]+"-1", "k3", "")
				balances := w.mustCall(t, "GET", "/balances", "", "")
				w.stop(t)
				r := start(t, reader, data, "--balances", openings)
				for _, again := range []struct {
					name      string
					got, want reply
				}{
					{"change", r.mustCall(t, "POST", path, "k1", `{"amount":30,"transfer":"t-1"}`), change},
					{"refusal", r.mustCall(t, "POST", "/accounts/carol/"+writer.kind()+"s", "k2", `{"amount":1}`), refused},
					{"undo", r.mustCall(t, "DELETE", path+"/"+writer.kind()[:1]+"-1", "k3", ""), undone},
					{"balances", r.mustCall(t, "GET", "/balances", "", ""), balances},
				} {
					if again.got != again.want {
						t.Errorf("%s after the change of language: got %v, want %v", again.name, again.got, again.want)
					}
				}
			})
		}
	}
}

// TestNothingAcknowledgedIsLost lets 32 clients change one account while the service is killed again and again.
// Each repeats its request with the same key until it is answered. Then the file is asked what happened.
func TestNothingAcknowledgedIsLost(t *testing.T) {
	const clients, each, kills = 32, 8, 5
	for _, i := range implementations() {
		t.Run(i.name, func(t *testing.T) {
			s := start(t, i, tempLedger(t), "--balances", "alice=1000000")
			acknowledged := changeUnderFire(t, s, clients, each, kills)
			s.kill(t)
			times, undone, balance := map[string]int{}, map[string]int{}, int64(0)
			for _, e := range readEntries(t, s.data) {
				switch e.Kind {
				case i.kind():
					times[e.Transfer]++
				case "undone":
					undone[e.Transfer]++
				}
				balance = e.Balance
			}
			want := map[string]int{}
			for _, transfer := range acknowledged {
				want[transfer] = 1
			}
			if len(want) != clients*each {
				t.Errorf("%d transfers were acknowledged, want %d", len(want), clients*each)
			}
			if diff := cmp.Diff(want, times); diff != "" {
				t.Errorf("how often each transfer is in the file (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(want, undone); diff != "" {
				t.Errorf("how often each transfer was undone in the file (-want +got):\n%s", diff)
			}
			if balance != 1000000 {
				t.Errorf("the last balance is %d, want 1000000", balance)
			}
		})
	}
}

// changeUnderFire makes and undoes clients*each changes of 1 and returns the transfers that were acknowledged.
func changeUnderFire(t *testing.T, s *service, clients, each, kills int) []string {
	var running sync.RWMutex // held for writing while the process is down
	acks := make(chan string, clients*each)
	path := "/accounts/alice/" + s.i.kind() + "s"
	until := func(method, path, key, body string) reply {
		for {
			running.RLock()
			url := s.url
			running.RUnlock()
			r, err := (&service{url: url}).call(method, path, key, body)
			if err == nil && r.status < 500 {
				return r
			}
		}
	}
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			for n := range each {
				transfer := fmt.Sprintf("t-%d-%d", c, n)
				r := until("POST", path, transfer, `{"amount":1,"transfer":"`+transfer+`"}`)
				_, rest, _ := strings.Cut(r.body, `"id":"`)
				id, _, _ := strings.Cut(rest, `"`)
				undo := until("DELETE", path+"/"+id, "undo-"+transfer, "")
				if r.status != http.StatusCreated || undo.status != http.StatusOK {
					t.Errorf("transfer %s was answered %v and its undo %v", transfer, r, undo)
				}
				acks <- transfer
			}
		})
	}
	var acknowledged []string
	for k := range kills { // paced by work, not by time
		for len(acknowledged) < (k+1)*clients*each/(kills+2)+rand.IntN(10) {
			acknowledged = append(acknowledged, <-acks)
		}
		running.Lock()
		s.kill(t)
		s.start(t)
		running.Unlock()
	}
	wg.Wait()
	close(acks)
	for transfer := range acks {
		acknowledged = append(acknowledged, transfer)
	}
	return acknowledged
}

// TestHeldAnswersComeAfterTheEffect asks for a hold far longer than the test and finds the effect meanwhile.
func TestHeldAnswersComeAfterTheEffect(t *testing.T) {
	for _, i := range implementations() {
		for _, tt := range []struct{ name, account, header, flag string }{
			{"by header", "alice", "600000", "--hold=0s"},
			{"by account name", "slow", "", "--hold=600s"},
			{"all of them", "alice", "", "--delay=600s"},
		} {
			t.Run(i.name+" "+tt.name, func(t *testing.T) {
				s := start(t, i, tempLedger(t), "--balances", openings, tt.flag)
				answered := s.changeHeld(tt.account, tt.header)
				s.awaitHeld(t)
				s.kill(t)
				if got := <-answered; got.status != 0 {
					t.Errorf("the held request was answered %v although the process was killed", got)
				}
			})
		}
	}
}

// TestStoppingServiceAnswersFirst sends SIGTERM while an answer is held: the answer still comes, then the process ends.
func TestStoppingServiceAnswersFirst(t *testing.T) {
	for _, i := range implementations() {
		t.Run(i.name, func(t *testing.T) {
			s := start(t, i, tempLedger(t), "--balances", openings)
			answered := s.changeHeld("alice", "300")
			s.awaitHeld(t)
			s.stop(t)
			if got := <-answered; got.status != http.StatusCreated {
				t.Errorf("the request held while the service stopped was answered %v, want 201", got)
			}
		})
	}
}

// changeHeld makes a change whose answer is held; status 0 stands for none.
func (s *service) changeHeld(account, millis string) <-chan reply {
	answered := make(chan reply, 1)
	go func() {
		r, err := s.call("POST", "/accounts/"+account+"/"+s.i.kind()+"s", "k1",
			`{"amount":1,"transfer":"t-held"}`, "X-Bank-Hold-Ms", millis)
		if err != nil {
			r = reply{}
		}
		answered <- r
	}()
	return answered
}

// awaitHeld returns once the held change has taken effect.
func (s *service) awaitHeld(t *testing.T) {
	t.Helper()
	for {
		if strings.Contains(s.mustCall(t, "GET", "/entries?transfer=t-held", "", "").body, "t-held") {
			return
		}
	}
}

// TestDamageInTheMiddleIsNotSkipped starts each program on a ledger with a broken line before the last.
func TestDamageInTheMiddleIsNotSkipped(t *testing.T) {
	for _, i := range implementations() {
		t.Run(i.name, func(t *testing.T) {
			i.needs(t)
			data := tempLedger(t)
			lines := `{"kind":"opened","account":"alice","balance":100}` + "\n{\"kind\":\n" +
				`{"kind":"opened","account":"bob","balance":50}` + "\n"
			if err := os.WriteFile(data, []byte(lines), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := i.command("--data", data).CombinedOutput()
			want := fmt.Sprintf("bank: open the ledger %s: line 2 is not JSON and not the last: restore the file from a copy\n", data)
			if err == nil || string(out) != want {
				t.Errorf("started with %v and printed %q, want %q", err, out, want)
			}
		})
	}
}
