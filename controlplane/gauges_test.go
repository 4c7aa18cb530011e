package controlplane

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"

	"txmesh/controlplane/xdstest"
)

// gauges are those that are not zero of the ones that count streams, sidecars and replicas.
func (p *plane) gauges() map[string]string {
	p.t.Helper()
	res, err := http.Get("http://" + p.API + "/metrics")
	if err != nil {
		p.t.Fatal(err)
	}
	defer res.Body.Close()
	out := map[string]string{}
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "txmesh_controlplane_"), " ")
		family, _, _ := strings.Cut(name, "{")
		switch family {
		case "streams", "sidecars", "replicas_connected", "services", "takeovers":
			if value != "0" {
				out[name] = value
			}
		}
	}
	return out
}

func untilGauges(t *testing.T, what string, p *plane, want map[string]string) {
	t.Helper()
	var got map[string]string
	t.Cleanup(func() {
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: gauges of %s (-want +last got):\n%s", what, p.Name, d)
		}
	})
	until(t, what, func() bool {
		got = p.gauges()
		return cmp.Equal(want, got)
	})
}

func TestGaugesFollowWhatHappens(t *testing.T) {
	t.Parallel()
	one := start(t, inSecure)
	two := start(t, func(c *Config) {
		inSecure(c)
		c.Name, c.Policies, c.Replicas = "two", one.cfg.Policies, []string{one.Listen}
		c.Grace = time.Hour // what the other replica told stays when it has gone
	})
	both := func(what, state string) {
		t.Helper()
		mine, theirs := map[string]string{`streams{kind="other"}`: "1"}, map[string]string{"replicas_connected": "1"}
		if state != "" {
			mine[`streams{kind="sidecar"}`] = "1"
		}
		for _, m := range []map[string]string{mine, theirs} {
			if what != "nobody" {
				m["services"] = "1"
			}
			if state != "" {
				m[`sidecars{state="`+state+`"}`] = "1"
			}
		}
		untilGauges(t, what, one, mine)
		untilGauges(t, what, two, theirs)
	}
	both("nobody", "")
	a := one.sidecar("A", "bank/accounts", "127.0.0.1:1", nil)
	a.Subscribe(resource.ExtensionConfigType, "*")
	first := a.Next()
	both("a sidecar comes", "stale")
	a.Ack(first)
	both("it accepts", "accepted")
	one.policies(policy + "  - {name: b, match: {service: mail}, hold: {}}\n")
	second := a.Next()
	both("the policies change", "stale")
	a.Nack(second, "no")
	both("it refuses", "refused")
	a.Close()
	both("it goes", "")
	one.stop()
	untilGauges(t, "the other replica goes", two, map[string]string{"services": "1"})
}

// TestFrozenIsToldByTimeAlone, to gauges and to other replicas.
func TestFrozenIsToldByTimeAlone(t *testing.T) {
	t.Parallel()
	one := start(t, func(c *Config) {
		inSecure(c)
		c.Heartbeat = 100 * time.Millisecond
	})
	two := start(t, func(c *Config) {
		inSecure(c)
		c.Name, c.Policies, c.Replicas = "two", one.cfg.Policies, []string{one.Listen}
	})
	a := one.sidecar("A", "bank/accounts", "127.0.0.1:1", nil)
	a.Subscribe(resource.ExtensionConfigType, "*")
	a.Ack(a.Next())
	a.Subscribe(resource.RuntimeType, "*")
	beat := a.Next() // and says nothing
	are := func(state string) bool {
		series := `sidecars{state="` + state + `"}`
		return one.gauges()[series] == "1" && two.gauges()[series] == "1"
	}
	until(t, "it is frozen at both replicas", func() bool { return are("frozen") })
	a.Ack(beat)
	a.Until("it has thawed at both replicas", func(*xdstest.Response) bool { return are("accepted") })
}

// TestNothingIsMadeAnewWhileNothingHappens: heartbeats and their answers are all that an idle fleet costs.
func TestNothingIsMadeAnewWhileNothingHappens(t *testing.T) {
	t.Parallel()
	p := start(t, func(c *Config) {
		inSecure(c)
		c.Heartbeat = 50 * time.Millisecond
	})
	c := p.plane
	a := p.sidecar("A", "bank/accounts", "127.0.0.1:1", nil)
	for _, typ := range []string{resource.ExtensionConfigType, resource.EndpointType, resource.RuntimeType} {
		a.Subscribe(typ, "*")
	}
	resting := func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.recount && len(c.outdated) == 0 && len(c.dirty) == 0
	}
	heard := map[string]bool{}
	a.Until("all there is, and rest", func(r *xdstest.Response) bool {
		heard[r.GetTypeUrl()] = true
		return len(heard) == 3 && resting()
	})
	was := c.directory.View(time.Now()).Assignments["bank/accounts"]
	beats := 0
	a.Until("twenty heartbeats", func(r *xdstest.Response) bool {
		if r.GetTypeUrl() != resource.RuntimeType || !resting() {
			t.Errorf("after %d heartbeats: %s came, rest %v", beats, r.GetTypeUrl(), resting())
		}
		beats++
		return beats == 20
	})
	if c.directory.View(time.Now()).Assignments["bank/accounts"] != was {
		t.Error("the endpoints were made anew")
	}
}
