package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Table is the name of the table, of family inet: both IPv4 and IPv6.
const Table = "txmesh"

// Rules says what is redirected. TCP alone is.
type Rules struct {
	Outbound uint16 // port that connections of this host go to; 0: they are left alone
	Inbound  uint16 // port that connections from outside go to; 0: they are left alone
	UIDs     []uint32
	Mark     uint32 // of sockets whose connections are left alone, as are those of UIDs; 0: none
	Loopback bool   // redirect what goes from this host to itself as well

	ExcludeOutbound []uint16       // destination ports that are left alone
	ExcludeInbound  []uint16       // ports of this host that are left alone
	ExcludeNetworks []netip.Prefix // destinations that are left alone, outbound
}

// check finds rules that would do nothing, or call themselves.
func (r Rules) check() error {
	var errs []error
	if r.Outbound == 0 && r.Inbound == 0 {
		errs = append(errs, errors.New("neither an outbound nor an inbound port: nothing would be redirected, name one"))
	}
	if r.Outbound != 0 && len(r.UIDs) == 0 && r.Mark == 0 {
		errs = append(errs, errors.New("neither a user id nor a mark excludes the sidecar: its own connections would come back to it, name one"))
	}
	return errors.Join(errs...)
}

// chain is one chain of the table.
type chain struct {
	name  string
	hook  string // output or prerouting
	rules []rule
}

// rule is matches that must all hold, and what happens then.
type rule struct {
	matches []match
	to      uint16 // port to redirect to; 0: leave the connection alone
}

type match struct {
	kind  kind
	value uint32
	net   netip.Prefix
}

type kind uint8

const (
	uid kind = iota
	mark
	intoLoopback
	fromLoopback
	notLocal // the destination is not this host
	port     // of the destination
	network  // of the destination
	tcp
)

// chains is the whole table.
func (r Rules) chains() []chain {
	var out []chain
	if r.Outbound != 0 {
		c := chain{name: "outbound", hook: "output"}
		for _, u := range r.UIDs {
			c.leave(match{kind: uid, value: u})
		}
		if r.Mark != 0 {
			c.leave(match{kind: mark, value: r.Mark})
		}
		if !r.Loopback {
			c.leave(match{kind: intoLoopback})
		}
		for _, n := range r.ExcludeNetworks {
			c.leave(match{kind: network, net: n.Masked()})
		}
		c.ports(r.ExcludeOutbound, r.Outbound)
		out = append(out, c)
	}
	if r.Inbound != 0 {
		c := chain{name: "inbound", hook: "prerouting"}
		c.leave(match{kind: fromLoopback})
		c.leave(match{kind: notLocal})
		c.ports(r.ExcludeInbound, r.Inbound)
		out = append(out, c)
	}
	return out
}

func (c *chain) leave(m match) { c.rules = append(c.rules, rule{matches: []match{m}}) }

func (c *chain) ports(excluded []uint16, to uint16) {
	for _, p := range excluded {
		c.rules = append(c.rules, rule{matches: []match{{kind: tcp}, {kind: port, value: uint32(p)}}})
	}
	c.rules = append(c.rules, rule{matches: []match{{kind: tcp}}, to: to})
}

// Script returns the rules as a script for `nft -f`.
func (r Rules) Script() (string, error) {
	if err := r.check(); err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s\ndelete table inet %s\ntable inet %s {\n", Table, Table, Table)
	for _, c := range r.chains() {
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype nat hook %s priority -100; policy accept;\n", c.name, c.hook)
		for _, x := range c.rules {
			b.WriteString("\t\t" + x.String() + "\n")
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String(), nil
}

// String is the rule as nft writes it.
func (r rule) String() string {
	var words []string
	for _, m := range r.matches {
		words = append(words, m.String())
	}
	if r.to != 0 {
		return strings.Join(words, " ") + fmt.Sprintf(" redirect to :%d", r.to)
	}
	return strings.Join(words, " ") + " return"
}

// String is the match as nft writes it.
func (m match) String() string {
	switch m.kind {
	case uid:
		return fmt.Sprintf("meta skuid %d", m.value)
	case mark:
		return fmt.Sprintf("meta mark 0x%08x", m.value)
	case intoLoopback:
		return `oifname "lo"`
	case fromLoopback:
		return `iifname "lo"`
	case notLocal:
		return "fib daddr type != local"
	case port:
		return fmt.Sprintf("tcp dport %d", m.value)
	case network:
		if m.net.Addr().Is4() {
			return "ip daddr " + m.net.String()
		}
		return "ip6 daddr " + m.net.String()
	case tcp:
		return "meta l4proto tcp"
	default:
		panic(fmt.Sprintf("nft: kind %d of a match", m.kind))
	}
}
