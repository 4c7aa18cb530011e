package api

import (
	"slices"
	"strings"
	"time"
)

// State is how a sidecar stands to the policies in force.
type State string

// The states, the worst first.
const (
	Rejected State = "refused"  // it cannot compile them and keeps its last good set
	Frozen   State = "frozen"   // it is connected and has not answered for two heartbeats
	Stale    State = "stale"    // it has not answered yet: its set is an older one, or none
	Accepted State = "accepted" // it runs them
)

// Status is the mesh as one replica sees it.
type Status struct {
	Replica  string    `json:"replica"`
	Policies string    `json:"policies"`           // version in force; empty: none yet
	Problem  string    `json:"problem,omitempty"`  // why newer policies are not in force
	Replicas []Replica `json:"replicas,omitempty"` // the other replicas
	Sidecars []Sidecar `json:"sidecars"`
}

// Replica is another replica of the control plane.
type Replica struct {
	Address   string `json:"address"`
	Connected bool   `json:"connected"`
	Error     string `json:"error,omitempty"`
}

// Sidecar is one connected sidecar.
type Sidecar struct {
	Owner    string     `json:"owner"`
	Service  string     `json:"service"`
	Inbound  string     `json:"inbound,omitempty"`
	Version  string     `json:"version,omitempty"` // of its program
	Replica  string     `json:"replica"`           // that it is connected to
	State    State      `json:"state"`
	Policies string     `json:"policies,omitempty"` // version that it accepted last
	Reason   string     `json:"reason,omitempty"`   // of its last refusal
	Since    *time.Time `json:"since,omitempty"`    // of its last answer about policies
}

// StateOf names a state: what a sidecar last accepted and refused, and whether it answers, against what is in force.
func StateOf(inForce, accepted, refused string, frozen bool) State {
	switch {
	case refused != "" && refused == inForce:
		return Rejected
	case frozen:
		return Frozen
	case inForce != "" && accepted == inForce:
		return Accepted
	}
	return Stale
}

// Sort brings the sidecars into the order of service and owner.
func (s *Status) Sort() {
	slices.SortFunc(s.Sidecars, func(a, b Sidecar) int {
		if c := strings.Compare(a.Service, b.Service); c != 0 {
			return c
		}
		return strings.Compare(a.Owner, b.Owner)
	})
}

// Short is a version as people say it.
func Short(version string) string { return version[:min(len(version), 4)] }
