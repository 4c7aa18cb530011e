package nft

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Apply puts the rules in force, in place of those of an earlier call, in one step. It needs CAP_NET_ADMIN.
func (r Rules) Apply() error {
	if err := r.check(); err != nil {
		return err
	}
	return change(func(c *nftables.Conn) {
		t := c.AddTable(table())
		accept := nftables.ChainPolicyAccept
		for _, x := range r.chains() {
			hook := nftables.ChainHookOutput
			if x.hook == "prerouting" {
				hook = nftables.ChainHookPrerouting
			}
			in := c.AddChain(&nftables.Chain{Name: x.name, Table: t, Type: nftables.ChainTypeNAT, Hooknum: hook,
				Priority: nftables.ChainPriorityNATDest, Policy: &accept})
			for _, y := range x.rules {
				c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: y.expressions()})
			}
		}
	})
}

// Clean takes the rules away, if there are any. It needs CAP_NET_ADMIN.
func Clean() error { return change(func(*nftables.Conn) {}) }

func table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// change replaces the table by what f makes, all or nothing.
func change(f func(*nftables.Conn)) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	c.AddTable(table()) // so that it is there to be deleted
	c.DelTable(table())
	f(c)
	if err := c.Flush(); err != nil {
		if errors.Is(err, unix.EPERM) {
			return fmt.Errorf("change table inet %s: %w: it needs CAP_NET_ADMIN", Table, err)
		}
		return fmt.Errorf("change table inet %s: %w", Table, err)
	}
	return nil
}

func (r rule) expressions() []expr.Any {
	var out []expr.Any
	for _, m := range r.matches {
		out = append(out, m.expressions()...)
	}
	if r.to == 0 {
		return append(out, &expr.Verdict{Kind: expr.VerdictReturn})
	}
	return append(out, &expr.Immediate{Register: 1, Data: binaryutil.BigEndian.PutUint16(r.to)}, &expr.Redir{RegisterProtoMin: 1})
}

// ifname is the name of an interface as the kernel compares it.
func ifname(s string) []byte { return append([]byte(s), make([]byte, unix.IFNAMSIZ-len(s))...) }

func (m match) expressions() []expr.Any {
	meta := func(key expr.MetaKey, value []byte) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value}}
	}
	switch m.kind {
	case uid:
		return meta(expr.MetaKeySKUID, binaryutil.NativeEndian.PutUint32(m.value))
	case mark:
		return meta(expr.MetaKeyMARK, binaryutil.NativeEndian.PutUint32(m.value))
	case intoLoopback:
		return meta(expr.MetaKeyOIFNAME, ifname("lo"))
	case fromLoopback:
		return meta(expr.MetaKeyIIFNAME, ifname("lo"))
	case notLocal:
		return []expr.Any{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true},
			&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
	case port:
		const offset, size = 2, 2
		return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: size},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(m.value))}}
	case network:
		return m.inNetwork()
	case tcp:
		return meta(expr.MetaKeyL4PROTO, []byte{unix.IPPROTO_TCP})
	default:
		panic(fmt.Sprintf("nft: kind %d of a match", m.kind))
	}
}

// inNetwork compares the destination in the header of IPv4 or IPv6.
func (m match) inNetwork() []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if m.net.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	addr := m.net.Addr().AsSlice()
	mask := make([]byte, len(addr))
	for i := range m.net.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	size := uint32(len(addr))
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr}}
}
