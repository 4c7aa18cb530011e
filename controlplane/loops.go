package controlplane

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"txmesh/controlplane/api"
	"txmesh/controlplane/source"
)

// Changes of the directory are gathered until none has come for publishQuiet: when a whole mesh comes back, each of them
// would be sent to everybody. They wait no longer than publishMax, and a little more for each sidecar that there is: what
// a change costs grows with them.
const (
	publishQuiet         = 100 * time.Millisecond
	publishMax           = time.Second
	publishMaxPerSidecar = 2 * time.Millisecond
)

// reloadEvery is how often the files of the authority are read again.
const reloadEvery = 10 * time.Second

// wake has the directory published soon. It never blocks.
func (c *ControlPlane) wake() {
	select {
	case c.dirty <- struct{}{}:
	default:
	}
}

// outdate has what is known of a sidecar told and counted anew. It never blocks.
func (c *ControlPlane) outdate(n *core.Node) {
	owner, _, _ := strings.Cut(n.GetId(), "/")
	c.mu.Lock()
	c.outdated[owner], c.recount = true, true
	c.mu.Unlock()
	c.wake()
}

// takeOutdated returns the owners that were outdated since it was last called.
func (c *ControlPlane) takeOutdated() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	owners := slices.Collect(maps.Keys(c.outdated))
	clear(c.outdated)
	return owners
}

// publishLoop hands out what follows from the directory when it changes, and when time alone changes it.
func (c *ControlPlane) publishLoop(ctx context.Context) {
	next := time.NewTimer(time.Hour)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.dirty:
		case <-next.C:
		}
		if !c.gather(ctx) {
			return
		}
		if at := c.publish(time.Now()); !at.IsZero() {
			next.Reset(time.Until(at))
		}
	}
}

// gather waits until changes have ceased for a moment, or false when ctx ends.
func (c *ControlPlane) gather(ctx context.Context) bool {
	sidecars, _ := c.xds.Streams()
	most := time.After(publishMax + time.Duration(sidecars)*publishMaxPerSidecar)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-most:
			return true
		case <-time.After(publishQuiet):
			return true
		case <-c.dirty:
		}
	}
}

// publish returns when it should be called next without a cause.
func (c *ControlPlane) publish(now time.Time) time.Time {
	for _, owner := range c.takeOutdated() {
		c.directory.Accept(owner, c.acceptanceOf(owner))
	}
	v := c.directory.View(now)
	if err := c.xds.SetEndpoints(v.Assignments, v.Here); err != nil {
		c.log.Error("peers not handed out", "error", err)
	}
	takeovers := make(map[string]map[string]any, len(v.Takeovers))
	for owner, t := range v.Takeovers {
		takeovers[owner] = map[string]any{"owner": t.Owner, "adopter": t.Adopter, "reason": t.Reason}
	}
	if err := c.xds.SetTakeovers(takeovers); err != nil {
		c.log.Error("takeovers not handed out", "error", err)
	}
	c.metrics.services.Update(float64(len(v.Assignments)))
	c.metrics.takeovers.Update(float64(len(v.Takeovers)))
	return v.Next
}

// update takes in what the source of the policies says.
func (c *ControlPlane) update(u source.Update) {
	problem := ""
	if u.Problem == nil {
		u.Problem = c.xds.SetPolicies(u.Set.Version, u.Set.Documents)
	}
	if u.Problem != nil {
		problem = u.Problem.Error()
		c.metrics.policyProblems.Inc(1)
		c.log.Error("policies not taken over, the last good ones stay", "policies", api.Short(c.xds.Policies()), "error", u.Problem)
	} else {
		c.metrics.policyUpdates.Inc(1)
		c.log.Info("policies handed out", "policies", api.Short(u.Set.Version), "documents", len(u.Set.Documents))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.problem, c.recount = problem, true
}

func (c *ControlPlane) beatLoop(ctx context.Context) {
	var count int64
	beat := func() {
		count++
		if err := c.xds.SetHeartbeat(count, time.Now()); err != nil {
			c.log.Error("no heartbeat", "error", err)
		}
	}
	beat()
	every(ctx, c.cfg.Heartbeat, beat)
}

func (c *ControlPlane) reloadLoop(ctx context.Context) {
	every(ctx, reloadEvery, func() {
		changed, err := c.authority.Reload()
		if err == nil {
			err = c.setSecrets()
		}
		if err != nil {
			c.log.Error("roots and secrets not read again, the last ones stay", "error", err)
		} else if changed {
			c.log.Info("roots changed", "fingerprint", c.authority.Fingerprint())
		}
	})
}

// settle ends the time in which nothing is taken from those that come back.
func (c *ControlPlane) settle(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(c.cfg.Grace):
	}
	if err := c.xds.Settle(); err != nil {
		c.log.Error("peers not handed out to those that came back", "error", err)
	}
}

func (c *ControlPlane) gaugeLoop(ctx context.Context) {
	every(ctx, reportEvery, func() {
		c.xds.Look() // who is frozen is known by time alone
		c.metrics.gauges(c)
	})
}

func every(ctx context.Context, d time.Duration, do func()) {
	tick := time.NewTicker(d)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

func (c *ControlPlane) acceptanceOf(owner string) *structpb.Struct {
	c.mu.Lock()
	stream := c.here[owner].stream
	c.mu.Unlock()
	a, _ := c.xds.Acceptance(stream)
	since := ""
	if !a.Since.IsZero() {
		since = a.Since.UTC().Format(time.RFC3339)
	}
	return &structpb.Struct{Fields: map[string]*structpb.Value{
		"accepted": structpb.NewStringValue(a.Accepted), "refused": structpb.NewStringValue(a.Refused), "reason": structpb.NewStringValue(a.Reason),
		"since": structpb.NewStringValue(since), "frozen": structpb.NewBoolValue(a.Frozen), "replica": structpb.NewStringValue(c.cfg.Name)}}
}
