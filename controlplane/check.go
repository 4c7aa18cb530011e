package controlplane

import (
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct{ Key, Value, Text, Remedy string }

// Problems is the error of a configuration: all that is wrong with it, in the order of the keys.
type Problems []Problem

// Error lists the problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = "config: "
		if p.Key != "" {
			lines[i] += p.Key + ": "
		}
		if p.Value != "" {
			lines[i] += strconv.Quote(p.Value) + ": "
		}
		lines[i] += p.Text + "; " + p.Remedy
	}
	return strings.Join(lines, "\n")
}

type problems struct{ list Problems }

func (p *problems) add(key, value, text, remedy string) {
	p.list = append(p.list, Problem{key, value, text, remedy})
}

// sorted brings the problems into the order of the keys; unknown keys go first.
func (p *problems) sorted() Problems {
	all := keys()
	rank := func(x Problem) int { return slices.IndexFunc(all, func(k key) bool { return k.name == x.Key }) }
	slices.SortStableFunc(p.list, func(a, b Problem) int { return rank(a) - rank(b) })
	return p.list
}

// address checks host:port. Port 0 asks the system for one and makes sense only where this process listens.
func (p *problems) address(key, value string, remote bool) string {
	host, port, err := net.SplitHostPort(value)
	n, perr := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || perr != nil || strings.ContainsAny(host, "/@ "):
		p.add(key, value, "is not host:port", "write for example 127.0.0.1:15810")
	case remote && (host == "" || n == 0):
		p.add(key, value, "names no host or port that can be called", "write for example controlplane-1:15810")
	}
	return value
}

func (p *problems) duration(key, value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d <= 0 {
		p.add(key, value, "is not a positive duration", "write for example 500ms, 30s or 24h")
	}
	return d
}

func (p *problems) size(key, value string) int64 {
	n, err := humanize.ParseBytes(value)
	if err != nil || n == 0 || n > math.MaxInt64 {
		p.add(key, value, "is not a size", "write for example 512KiB, 4MiB or 1GiB")
		return 0
	}
	return int64(n)
}

func (p *problems) word(key, value string, words ...string) string {
	if !slices.Contains(words, value) {
		p.add(key, value, "is not one of the values", "write one of "+strings.Join(words, ", "))
	}
	return value
}

// list1 reads a list of texts: a YAML list, or one text with commas.
func (p *problems) list1(key string, v any) []string {
	var out []string
	switch x := v.(type) {
	case nil:
	case string:
		for s := range strings.SplitSeq(x, ",") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, s)
			}
		}
	case []any:
		for _, e := range x {
			s, ok := e.(string)
			if !ok || s == "" {
				p.add(key, fmt.Sprint(e), "is not a text", "write a list of texts")
				continue
			}
			out = append(out, s)
		}
	default:
		p.add(key, fmt.Sprint(x), "is not a list", "write a list, or texts separated by commas")
	}
	return out
}

// certificateLifeMin leaves a sidecar time to renew.
const certificateLifeMin = time.Minute

// check finds what is wrong between the keys, and fills in what the host knows.
func (p *problems) check(c *Config) {
	if len(c.Policies) == 0 {
		p.add("policies", "", "is missing", "name a directory with policies; it may be empty")
	}
	if _, err := spiffeid.TrustDomainFromString(c.TrustDomain); err != nil || strings.Contains(c.TrustDomain, "/") {
		p.add("trust-domain", c.TrustDomain, "is not a trust domain", "use lower-case letters, digits, '.', '-' and '_', for example mesh.example")
	}
	if (c.RootCertificate == "") != (c.RootKey == "") {
		p.add("root-certificate", c.RootCertificate, "certificate and key of the root belong together", "give both root-certificate and root-key, or neither")
	}
	if c.CertificateLife > 0 && c.CertificateLife < certificateLifeMin {
		p.add("certificate-life", c.CertificateLife.String(), "is too short to renew in", "use "+certificateLifeMin.String()+" at least")
	}
	if c.DataDir == "" {
		p.add("data-dir", "", "is empty", "give it a value, or leave the key out for its default")
	}
	host, _, err := net.SplitHostPort(c.Listen)
	if ip := net.ParseIP(host); c.Insecure && err == nil && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		p.add("insecure", "true", "would serve "+c.Listen+" to others than this host", "listen on 127.0.0.1, or leave insecure out")
	}
	self, err := os.Hostname()
	if c.Name == "" {
		c.Name = self
	}
	if err != nil || c.Name == "" {
		p.add("name", "", "the host has no name", "name this replica")
	}
	for _, n := range []string{self, "localhost", "127.0.0.1", "::1", host} {
		if ip := net.ParseIP(n); n != "" && (ip == nil || !ip.IsUnspecified()) && !slices.Contains(c.Names, n) {
			c.Names = append(c.Names, n)
		}
	}
}
