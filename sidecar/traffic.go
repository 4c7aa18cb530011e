package sidecar

import (
	"context"
	"errors"
	"time"

	"txmesh/interceptor"
	"txmesh/interceptor/traffic"
)

// learnEvery is how often the endpoints of services that the configuration does not place are looked up.
const learnEvery = time.Second

// newTraffic makes what all ports know of the destinations that requests go to.
func (s *Sidecar) newTraffic() {
	s.traffic = traffic.New(traffic.Options{Policies: s, Observe: s.metrics.traffic})
}

// learnLoop gives services without endpoints of their own those that the directory knows: peers, as they are configured
// or as the control plane names them.
func (s *Sidecar) learnLoop(ctx context.Context) { every(ctx, learnEvery, s.learn) }

func (s *Sidecar) learn() {
	for _, u := range s.cfg.Upstreams {
		if len(u.To) == 0 {
			s.traffic.Service(u.Service, nil).SetEndpoints(s.directory.EndpointsOf(u.Service))
		}
	}
}

// limitedApp sends the ops of transactions to the application within its limits, before new work.
type limitedApp struct {
	app     interceptor.App
	cluster *traffic.Cluster
}

// Send implements interceptor.App.
func (a limitedApp) Send(ctx context.Context, r *interceptor.Outgoing) (*interceptor.Reply, error) {
	lease, err := a.cluster.Pick(ctx, traffic.Ask{Method: r.Method, Path: r.Path, First: true, Alone: true})
	if err != nil {
		return nil, errors.Join(errors.New("the application takes no more requests: nothing was sent"), err)
	}
	defer lease.Done()
	return a.app.Send(ctx, r)
}
