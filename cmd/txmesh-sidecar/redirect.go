package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"txmesh/interceptor/nft"
)

// redirectCommand is the word that makes this program write rules instead of running a sidecar.
const redirectCommand = "redirect"

const redirectHelp = `Turn connections of this host or pod to its sidecar, by rules of nftables in a table of their own.
Needs CAP_NET_ADMIN, and no other program. Calling it again replaces the rules.

Usage: txmesh-sidecar redirect [--KEY VALUE ...]

`

// redirectFlags are the choices of the command.
type redirectFlags struct {
	rules        nft.Rules
	uids         []uint
	out, in      []uint
	networks     []string
	clean, print bool
}

// writeRules puts the rules in force that args ask for, prints them, or takes them away.
func writeRules(args []string, stdout io.Writer) error {
	var f redirectFlags
	fs := f.set()
	err := fs.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Fprint(stdout, redirectHelp, fs.FlagUsagesWrapped(120))
		return nil
	}
	if err == nil && fs.NArg() > 0 {
		err = fmt.Errorf("argument %q: write it as --KEY VALUE", fs.Arg(0))
	}
	if err == nil {
		err = f.read()
	}
	if err == nil && f.print {
		var script string
		script, err = f.rules.Script()
		fmt.Fprint(stdout, script)
	} else if err == nil && f.clean {
		err = nft.Clean()
	} else if err == nil {
		err = f.rules.Apply()
	}
	if err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	return nil
}

func (f *redirectFlags) set() *pflag.FlagSet {
	fs := pflag.NewFlagSet(redirectCommand, pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	fs.Uint16Var(&f.rules.Outbound, "outbound-port", 15802, "port of transparent-outbound, for connections of the application; 0 leaves them alone")
	fs.Uint16Var(&f.rules.Inbound, "inbound-port", 15807, "port of transparent-inbound, for connections to the application; 0 leaves them alone")
	fs.UintSliceVar(&f.uids, "uid", []uint{7337}, "user ids whose connections are left alone: the sidecar's")
	fs.Uint32Var(&f.rules.Mark, "mark", 0, "mark of connections that are left alone: the sidecar's key mark")
	fs.UintSliceVar(&f.out, "exclude-outbound", nil, "ports that the application calls directly")
	fs.UintSliceVar(&f.in, "exclude-inbound", []uint{15806, 15808, 15820}, "ports of this host that are called directly: the sidecar's own")
	fs.StringSliceVar(&f.networks, "exclude-networks", nil, "networks that the application calls directly, in CIDR notation")
	fs.BoolVar(&f.rules.Loopback, "loopback", false, "redirect connections of this host to itself as well")
	fs.BoolVar(&f.print, "print", false, "print the rules as a script for nft, and change nothing")
	fs.BoolVar(&f.clean, "clean", false, "take the rules away")
	return fs
}

// read brings the texts and numbers into the form of the rules.
func (f *redirectFlags) read() error {
	var errs []error
	for _, u := range f.uids {
		if u > 1<<32-2 {
			errs = append(errs, fmt.Errorf("uid %d is no user id", u))
		}
		f.rules.UIDs = append(f.rules.UIDs, uint32(u))
	}
	ports := func(key string, from []uint) (to []uint16) {
		for _, p := range from {
			if p == 0 || p > 1<<16-1 {
				errs = append(errs, fmt.Errorf("%s: %d is no port between 1 and 65535", key, p))
			}
			to = append(to, uint16(p))
		}
		return to
	}
	f.rules.ExcludeOutbound, f.rules.ExcludeInbound = ports("exclude-outbound", f.out), ports("exclude-inbound", f.in)
	for _, n := range f.networks {
		p, err := netip.ParsePrefix(strings.TrimSpace(n))
		if err != nil {
			errs = append(errs, fmt.Errorf("exclude-networks: %q is no network: write for example 169.254.0.0/16: %w", n, err))
		}
		f.rules.ExcludeNetworks = append(f.rules.ExcludeNetworks, p)
	}
	return errors.Join(errs...)
}
