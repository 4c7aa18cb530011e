package controlplane

import (
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"txmesh/controlplane/api"
	"txmesh/controlplane/directory"
)

// status is the mesh as this replica sees it: its own sidecars, and those of which the other replicas tell.
func (c *ControlPlane) status() api.Status {
	st := api.Status{Replica: c.cfg.Name, Policies: c.xds.Policies(), Sidecars: []api.Sidecar{}}
	c.mu.Lock()
	st.Problem = c.problem
	mine, seen := map[string]bool{}, map[string]bool{}
	for owner, here := range c.here {
		mine[owner], seen[owner] = true, true
		st.Sidecars = append(st.Sidecars, sidecarOf(here.node))
	}
	for _, address := range c.cfg.Replicas {
		o := c.others[address]
		row := api.Replica{Address: address, Connected: o.connected}
		if o.err != nil {
			row.Error = o.err.Error()
		}
		st.Replicas = append(st.Replicas, row)
		for _, n := range o.nodes {
			if !seen[n.Owner] {
				seen[n.Owner] = true
				st.Sidecars = append(st.Sidecars, judged(sidecarOf(n), o.states[n.Owner], st.Policies))
			}
		}
	}
	c.mu.Unlock()
	for i, s := range st.Sidecars {
		if mine[s.Owner] {
			st.Sidecars[i] = judged(s, c.acceptanceOf(s.Owner), st.Policies)
		}
	}
	st.Sort()
	return st
}

func sidecarOf(n directory.Node) api.Sidecar {
	return api.Sidecar{Owner: n.Owner, Service: n.Service, Inbound: n.Inbound, Version: n.Version}
}

// judged fills in how a sidecar stands to what is in force here.
func judged(s api.Sidecar, a *structpb.Struct, inForce string) api.Sidecar {
	text := func(key string) string { return a.GetFields()[key].GetStringValue() }
	s.Replica, s.Policies, s.Reason = text("replica"), text("accepted"), text("reason")
	s.State = api.StateOf(inForce, text("accepted"), text("refused"), a.GetFields()["frozen"].GetBoolValue())
	if since, err := time.Parse(time.RFC3339, text("since")); err == nil {
		s.Since = &since
	}
	return s
}
