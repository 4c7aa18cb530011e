package xds

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"txmesh/sidecar/xds/envoy"
)

// The types of resources, as Envoy names them.
const (
	typePolicies = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	typePeers    = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	typeSecrets  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	typeRuntime  = "type.googleapis.com/envoy.service.runtime.v3.Runtime"
)

// resources are those of one type, by name. A map that others can see is never changed.
type resources map[string]*envoy.Resource

// kind is one type of resources: what was received, what of it is good, and what is done with it. The receiver of the
// stream alone works with it.
type kind struct {
	name, url string
	kept      bool // on disk
	whole     bool // one bad resource refuses all

	live     bool      // something came from the control plane
	received resources // on this stream, on top of what was good when it began
	good     resources // in use

	// change takes one resource, nil if it was removed, or says what is wrong with it; nil: done looks at them all.
	change func(name string, r *anypb.Any) error
	// done comes after the changes of an answer and returns what is wrong with the whole.
	done func(all resources) []error
}

// begin forgets what was received and refused: the server is told of the good versions and sends the rest again.
func (k *kind) begin() (versions map[string]string) {
	k.received = k.good
	versions = make(map[string]string, len(k.good))
	for name, r := range k.good {
		versions[name] = r.Version
	}
	return versions
}

// take applies an answer and returns what is wrong with it. Refused resources leave what was there under their names,
// or, where one refuses all, the whole set as it was. But the server counts everything as delivered that it has sent:
// then the repair of one bad resource comes alone, and is judged together with all that came before.
func (k *kind) take(res *envoy.DeltaDiscoveryResponse) []error {
	var problems []error
	received := maps.Clone(k.received)
	if received == nil {
		received = resources{}
	}
	for _, r := range res.Resources {
		if r == nil || r.Name == "" {
			problems = append(problems, errors.New("resource without a name"))
			continue
		}
		if err := k.changed(r.Name, r.Resource); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", r.Name, err))
			continue
		}
		received[r.Name] = r
	}
	for _, name := range res.RemovedResources {
		if err := k.changed(name, nil); err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
		}
		delete(received, name)
	}
	problems = append(problems, k.done(received)...)
	k.received = received
	if !k.whole || len(problems) == 0 {
		k.good = received
	}
	return problems
}

func (k *kind) changed(name string, r *anypb.Any) error {
	if k.change == nil {
		return nil
	}
	return k.change(name, r)
}

// unpack reads a message of a type.
func unpack(a *anypb.Any, url string, m proto.Message) error {
	if a.GetTypeUrl() != url {
		return fmt.Errorf("is of type %q, not %q", a.GetTypeUrl(), url)
	}
	if err := proto.Unmarshal(a.GetValue(), m); err != nil {
		return fmt.Errorf("read %s: %w", url[strings.LastIndexByte(url, '.')+1:], err)
	}
	return nil
}

// messageMax bounds what a refusal says.
const messageMax = 1 << 10

// message joins problems, whole ones as far as there is room.
func message(problems []error) string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, strings.Split(p.Error(), "\n")...)
	}
	text := strings.Join(lines, "\n")
	for n := len(lines); len(text) > messageMax && n > 1; n-- {
		text = strings.Join(lines[:n-1], "\n") + fmt.Sprintf("\nand %d more", len(lines)-n+1)
	}
	if len(text) > messageMax {
		text = text[:messageMax]
		for !utf8.ValidString(text) {
			text = text[:len(text)-1]
		}
	}
	return text
}

// names lists the names of resources in order.
func (rs resources) names() []string { return slices.Sorted(maps.Keys(rs)) }
