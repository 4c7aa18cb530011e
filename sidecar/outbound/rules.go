package outbound

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"txmesh/policies"
)

// errStore says that the document could not be read at present.
var errStore = errors.New("policy documents cannot be read")

// rulesMax bounds the compiled rules that are kept.
const rulesMax = 1000

type ruleName struct{ document, rule string }

// rules compiles rules from journaled documents and keeps them.
type rules struct {
	docs Documents

	mu     sync.Mutex // guards byName
	byName map[ruleName]*policies.Call
}

func (r *rules) find(ctx context.Context, document, rule string) (*policies.Call, error) {
	n := ruleName{document, rule}
	r.mu.Lock()
	c := r.byName[n]
	r.mu.Unlock()
	if c != nil {
		return c, nil
	}
	src, err := r.docs.Get(ctx, document)
	switch {
	case errors.Is(err, ErrDocument):
		return nil, fmt.Errorf("policy document %s of rule %s: %w", document, rule, err)
	case err != nil:
		return nil, fmt.Errorf("policy document %s of rule %s: %w: %w", document, rule, errStore, err)
	}
	c, err = policies.Recompile(src, rule)
	if err != nil {
		return nil, fmt.Errorf("rule %s of policy document %s: %w", rule, document, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.byName) >= rulesMax {
		clear(r.byName)
	}
	r.byName[n] = c
	return c, nil
}
