package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// bankFiles is the directory of the bank's services and of its policy.
func bankFiles() string {
	path, err := filepath.Abs(filepath.Join("..", "..", "examples", "bank"))
	if err != nil {
		panic(err)
	}
	return path
}

// newBank is the bank of the examples: transfers in Go, accounts in Python, savings in Node, or all in Go where the
// machine has nothing else.
func newBank(t *testing.T, accounts, savings string) *mesh {
	t.Helper()
	policy, err := os.ReadFile(filepath.Join(bankFiles(), "policy.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	book := func(program, script, balances string) func(n *node) []string {
		return func(n *node) []string {
			command := []string{n.m.bin.bank(), "--as", n.name}
			if path, err := exec.LookPath(program); err == nil {
				command = []string{path, filepath.Join(bankFiles(), script)}
			} else {
				t.Logf("%s is not on this machine: %s runs in Go", program, n.name)
			}
			return append(command, "--listen", n.listen, "--data", n.data(), "--balances", balances)
		}
	}
	return newMesh(t, string(policy),
		member{name: "accounts", command: book("python3", "accounts.py", accounts)},
		member{name: "savings", command: book("node", "savings.mjs", savings)},
		member{name: "transfers", calls: []string{"accounts", "savings"}, command: func(n *node) []string {
			return []string{n.m.bin.bank(), "--as", "transfers", "--listen", n.listen,
				"--accounts-url", "http://" + n.to["accounts"], "--savings-url", "http://" + n.to["savings"]}
		}})
}

// entry is one line of a bank's file.
type entry struct {
	Kind, ID, Account, Transfer, Key string
	Amount, Balance                  int64
}

// book is what the file of a bank's service says.
type book struct {
	balances map[string]int64
	net      map[string]int64 // by transfer: what it changed, undone or not
	times    map[string]int   // by transfer: how often it was booked
}

// readBook folds a file without asking the service.
func readBook(n *node) book {
	b := book{balances: map[string]int64{}, net: map[string]int64{}, times: map[string]int{}}
	undone := map[string]bool{}
	for _, e := range readLines[entry](n) {
		switch e.Kind {
		case "withdrawal":
			b.net[e.Transfer] -= e.Amount
			b.times[e.Transfer]++
		case "deposit":
			b.net[e.Transfer] += e.Amount
			b.times[e.Transfer]++
		case "undone":
			if undone[e.ID] {
				n.m.t.Errorf("%s: %s is undone twice", n.name, e.ID)
			}
			undone[e.ID] = true
			sign := int64(1)
			if n.name == "savings" {
				sign = -1
			}
			b.net[e.Transfer] += sign * e.Amount
		default:
			if e.Kind != "opened" {
				continue
			}
		}
		b.balances[e.Account] = e.Balance
	}
	return b
}

func (b book) sum() int64 {
	var sum int64
	for _, v := range b.balances {
		sum += v
	}
	return sum
}
