package xds

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"txmesh/sidecar/xds/envoy"
)

// Takeover says who should finish the transactions of a journal whose holder is gone.
type Takeover struct {
	Owner   string // of the journal
	Epoch   uint64 // that was seen last; 0: not known
	Adopter string // owner id of the sidecar that should adopt it
	Reason  string
}

const (
	heartbeat      = "heartbeat"
	takeoverPrefix = "takeover/"
	nameRoots      = "ROOTCA"
	nameMeshSecret = "mesh-secret"
)

// newKinds lists what is subscribed to, in the order of the first requests.
func (c *Client) newKinds() []*kind {
	kinds := []*kind{c.policiesKind(), c.peersKind()}
	if c.opt.Roots != nil || c.opt.MeshSecret != nil {
		kinds = append(kinds, c.secretsKind())
	}
	return append(kinds, c.runtimeKind())
}

func (c *Client) policiesKind() *kind {
	var compiler compiler
	return &kind{name: "policies", url: typePolicies, kept: true, whole: true, done: func(all resources) []error {
		set, problems := compiler.compile(all)
		if len(problems) > 0 {
			c.accept(nil, "policies refused: "+message(problems))
			return problems
		}
		c.accept(set, "")
		return nil
	}}
}

func (c *Client) peersKind() *kind {
	k := &kind{name: "peers", url: typePeers, kept: true}
	services := map[string][]Node{} // by the name of the resource
	k.change = func(name string, r *anypb.Any) error {
		if r == nil {
			delete(services, name)
			return nil
		}
		nodes, err := nodesOf(r)
		if err == nil {
			services[name] = nodes
		}
		return err
	}
	k.done = func(resources) []error {
		f := Fleet{Live: k.live}
		for _, name := range slices.Sorted(maps.Keys(services)) {
			f.Sidecars = append(f.Sidecars, services[name]...)
		}
		c.opt.Peers(f)
		return nil
	}
	return k
}

// secretsKind hands secrets over. One that was removed stays in use: without it nothing could be reached any more.
func (c *Client) secretsKind() *kind {
	return &kind{name: "secrets", url: typeSecrets, done: func(resources) []error { return nil },
		change: func(name string, r *anypb.Any) error {
			if r == nil {
				c.opt.Log.Warn("secret removed by the control plane, it stays in use", "name", name)
				return nil
			}
			var s envoy.Secret
			if err := unpack(r, typeSecrets, &s); err != nil {
				return err
			}
			switch {
			case name == nameRoots && c.opt.Roots != nil:
				return handOver(s.GetValidationContext().GetTrustedCa(), "validation_context.trusted_ca", c.opt.Roots)
			case name == nameMeshSecret && c.opt.MeshSecret != nil:
				return handOver(s.GetGenericSecret().GetSecret(), "generic_secret.secret", c.opt.MeshSecret)
			}
			return nil // of a later release, or not wanted
		}}
}

func handOver(from *envoy.DataSource, field string, to func([]byte) error) error {
	data := from.GetInlineBytes()
	if s := from.GetInlineString(); s != "" {
		data = []byte(s)
	}
	if len(data) == 0 {
		return fmt.Errorf("%s is empty or not inline", field)
	}
	return to(data)
}

func (c *Client) runtimeKind() *kind {
	wanted := map[string]Takeover{}
	var told []Takeover
	return &kind{name: "runtime", url: typeRuntime,
		change: func(name string, r *anypb.Any) error {
			if !strings.HasPrefix(name, takeoverPrefix) {
				return nil // that it came is all that a heartbeat says
			}
			if r == nil {
				delete(wanted, name)
				return nil
			}
			t, err := takeoverOf(name, r)
			if err == nil {
				wanted[name] = t
			}
			return err
		},
		done: func(resources) []error {
			var all []Takeover
			for _, name := range slices.Sorted(maps.Keys(wanted)) {
				all = append(all, wanted[name])
			}
			if !slices.Equal(all, told) {
				told = all
				c.opt.Takeovers(slices.Clone(all))
			}
			return nil
		}}
}

func takeoverOf(name string, r *anypb.Any) (Takeover, error) {
	var rt envoy.Runtime
	if err := unpack(r, typeRuntime, &rt); err != nil {
		return Takeover{}, err
	}
	f := rt.GetLayer().GetFields()
	t := Takeover{Owner: f["owner"].GetStringValue(), Adopter: f["adopter"].GetStringValue(), Reason: f["reason"].GetStringValue()}
	epoch, err := wholeNumber(f["epoch"])
	switch {
	case err != nil:
		return t, fmt.Errorf("epoch: %w", err)
	case t.Owner == "" || name != takeoverPrefix+t.Owner:
		return t, fmt.Errorf("owner %q is not that of the name", t.Owner)
	case t.Adopter == "":
		return t, errors.New("adopter is missing")
	}
	t.Epoch = epoch
	return t, nil
}

// wholeNumber reads a number, or its digits: a Struct has no integers. Nothing is 0.
func wholeNumber(v *structpb.Value) (uint64, error) {
	switch x := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return strconv.ParseUint(x.StringValue, 10, 64)
	case *structpb.Value_NumberValue:
		n := x.NumberValue
		if n < 0 || n >= 1<<53 || n != math.Trunc(n) {
			return 0, fmt.Errorf("%v is not a whole number below 2^53", n)
		}
		return uint64(n), nil
	}
	return 0, nil
}
