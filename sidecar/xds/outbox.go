package xds

import (
	"sync"

	"txmesh/sidecar/xds/envoy"
)

// outbox holds the requests that wait to be sent, one for each type: what is added meanwhile goes with it.
type outbox struct {
	filled chan struct{} // tells the sender; holds one word

	mu      sync.Mutex // guards waiting
	waiting []*envoy.DeltaDiscoveryRequest
}

func newOutbox() *outbox { return &outbox{filled: make(chan struct{}, 1)} }

// add changes the waiting request of a type.
func (o *outbox) add(url string, change func(*envoy.DeltaDiscoveryRequest)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var req *envoy.DeltaDiscoveryRequest
	for _, w := range o.waiting {
		if w.TypeUrl == url {
			req = w
		}
	}
	if req == nil {
		req = &envoy.DeltaDiscoveryRequest{TypeUrl: url}
		o.waiting = append(o.waiting, req)
	}
	change(req)
	select {
	case o.filled <- struct{}{}:
	default:
	}
}

// take empties the box.
func (o *outbox) take() []*envoy.DeltaDiscoveryRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.waiting
	o.waiting = nil
	return all
}
