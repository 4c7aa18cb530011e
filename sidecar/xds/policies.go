package xds

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	"txmesh/policies"
	"txmesh/sidecar/xds/envoy"
)

const typeText = "type.googleapis.com/google.protobuf.StringValue"

// compiler compiles all documents together, and those that it has compiled last not again.
type compiler struct {
	last     [sha256.Size]byte
	set      *policies.Set // nil: refused, or nothing yet
	problems []error
}

// compile returns a set, or everything that is wrong.
func (c *compiler) compile(all resources) (*policies.Set, []error) {
	var sources []policies.Source
	var problems []error
	print := sha256.New()
	for _, name := range all.names() {
		text, err := document(all[name])
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", name, err))
			continue
		}
		sources = append(sources, policies.Source{Name: name, Data: []byte(text)})
		for _, part := range []string{name, text} {
			print.Write(binary.AppendUvarint(nil, uint64(len(part)))) // never fails
			print.Write([]byte(part))
		}
	}
	sum := [sha256.Size]byte(print.Sum(nil))
	if len(problems) == 0 && sum == c.last && (c.set != nil || len(c.problems) > 0) {
		return c.set, c.problems
	}
	set, err := policies.Compile(sources...)
	if err != nil {
		problems = append(problems, err)
	}
	if len(problems) > 0 {
		set = nil
	}
	c.last, c.set, c.problems = sum, set, problems
	return set, problems
}

// document is the text of one policy document.
func document(r *envoy.Resource) (string, error) {
	var config envoy.TypedExtensionConfig
	if err := unpack(r.GetResource(), typePolicies, &config); err != nil {
		return "", err
	}
	var text wrapperspb.StringValue
	if err := unpack(config.TypedConfig, typeText, &text); err != nil {
		return "", err
	}
	return text.Value, nil
}

// next is the newest set that is not in force yet. Putting it there may take long and must not keep the stream waiting.
type next struct {
	use     func(context.Context, *policies.Set) error
	changed chan struct{} // tells run of a new one; holds one word

	mu  sync.Mutex // guards set
	set *policies.Set
}

// retryUse is the pause before a set is put in force again after an error.
const retryUse = time.Second

func (n *next) put(set *policies.Set) {
	n.mu.Lock()
	n.set = set
	n.mu.Unlock()
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

func (n *next) run(ctx context.Context, log *slog.Logger) {
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed:
		case <-retry.C:
		}
		n.mu.Lock()
		set := n.set
		n.mu.Unlock()
		if err := n.use(ctx, set); err != nil && ctx.Err() == nil {
			log.Error("policies not in force yet", "again", retryUse, "error", err)
			retry.Reset(retryUse)
		}
	}
}
