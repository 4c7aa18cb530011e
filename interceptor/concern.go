package interceptor

import "txmesh/policies"

// Concerns reports whether Before of a request may block, read its body or give a ticket. It looks at the header alone,
// and changes nothing. A forwarder of many streams on one connection asks it, so that the others need not wait.
func (g *Gate) Concerns(p Port, r Request) bool {
	for _, h := range [...]string{HeaderContext, headerBaggage, HeaderBranch, HeaderStart, headerUndo, headerConfirm, headerCancel, headerHold} {
		if r.Header(h) != "" {
			return true
		}
	}
	set := g.Policies.Current()
	if p.Direction == Inbound {
		return set.Start(g.ownTarget(r)) != nil
	}
	return set.Call(policies.Target{Service: p.Service, Host: r.Host(), Method: r.Method(), Path: r.Path()}) != nil
}
