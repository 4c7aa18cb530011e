package sidecar

import (
	"cmp"
	"fmt"
	"math"
	"net"
	neturl "net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
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
	rank := func(x Problem) int {
		name, _, _ := strings.Cut(x.Key, "[")
		name, _, _ = strings.Cut(name, " ")
		return slices.IndexFunc(all, func(k key) bool { return k.name == name })
	}
	slices.SortStableFunc(p.list, func(a, b Problem) int { return rank(a) - rank(b) })
	return p.list
}

// url checks an absolute http or https URL.
func (p *problems) url(key, value string) string {
	u, err := neturl.Parse(value)
	if value != "" && (err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https") {
		p.add(key, value, "is not a URL", "write for example http://127.0.0.1:8080/path")
	}
	return value
}

// storeURL checks where the journal is. What is said of a wrong one holds no password.
func (p *problems) storeURL(key, value string) string {
	if value == embeddedStore {
		return value
	}
	u, err := neturl.Parse(value)
	switch {
	case err != nil:
		p.add(key, "", "is neither badger nor a URL", "write badger, or for example etcd://10.0.0.1:2379,10.0.0.2:2379/txmesh")
	case !slices.Contains([]string{"etcd", "postgres", "postgresql", "mysql"}, u.Scheme) || u.Host == "":
		p.add(key, u.Redacted(), "is neither badger nor the URL of a store", "write badger, or a URL that begins with etcd://, postgres:// or mysql://")
	}
	return value
}

// qualified puts a service without namespace into one.
func qualified(name, namespace string) string {
	if name == "" || strings.Contains(name, "/") {
		return name
	}
	return namespace + "/" + name
}

// address checks host:port. Port 0 asks the system for one and makes sense only where this sidecar listens.
func (p *problems) address(key, value string, remote bool) string {
	if value == "" || value == "off" && key == "outbound" {
		return ""
	}
	host, port, err := net.SplitHostPort(value)
	n, perr := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil || perr != nil || strings.ContainsAny(host, "/@ "):
		p.add(key, value, "is not host:port", "write for example 127.0.0.1:8080")
	case remote && (host == "" || n == 0):
		p.add(key, value, "names no host or port that can be called", "write for example 127.0.0.1:8080")
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
	if err != nil || n == 0 || n > math.MaxInt64 || key == "max-body" && n > math.MaxInt32 {
		p.add(key, value, "is not a size", "write for example 512KiB, 4MiB or 1GiB")
		return 0
	}
	return int64(n)
}

func (p *problems) number(key, value string) int {
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		p.add(key, value, "is not a positive number", "write for example 1000")
	}
	return n
}

func (p *problems) boolean(key, value string) bool {
	if value != "true" && value != "false" {
		p.add(key, value, "is neither true nor false", "write true or false")
	}
	return value == "true"
}

func (p *problems) word(name, value string) string {
	i := slices.IndexFunc(keys(), func(k key) bool { return k.name == name })
	if words := keys()[i].words; !slices.Contains(words, value) {
		p.add(name, value, "is not one of the values", "write one of "+strings.Join(words, ", "))
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

// upstreams reads the list of maps of the file, or the short form of flags and variables.
func (p *problems) upstreams(v any, service string) []Upstream {
	namespace, _, _ := strings.Cut(qualified(cmp.Or(service, "-"), "default"), "/")
	var out []Upstream
	switch x := v.(type) {
	case nil:
	case string:
		for s := range strings.SplitSeq(x, ";") {
			if s = strings.TrimSpace(s); s != "" {
				out = append(out, p.shortUpstream(s, namespace))
			}
		}
	case []any:
		for i, e := range x {
			m, ok := e.(map[string]any)
			if !ok {
				p.add(fmt.Sprintf("upstreams[%d]", i), fmt.Sprint(e), "is not a map", "write {service: NAME, listen: HOST:PORT, to: [HOST:PORT]}")
				continue
			}
			out = append(out, p.upstream(fmt.Sprintf("upstreams[%d]", i), m, namespace))
		}
	default:
		p.add("upstreams", fmt.Sprint(x), "is not a list", "write a list of {service, listen, to, host, protocol}")
	}
	return out
}

func (p *problems) shortUpstream(s, namespace string) Upstream {
	m := make(map[string]any)
	for part := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(part, "=")
		if k = strings.TrimSpace(k); !ok {
			p.add("upstreams", s, "part "+strconv.Quote(part)+" is not KEY=VALUE", "write service=NAME,listen=HOST:PORT,to=HOST:PORT")
			continue
		}
		m[k] = strings.TrimSpace(v)
		if k == "to" {
			m[k] = strings.ReplaceAll(v, "|", ",")
		}
	}
	return p.upstream("upstreams", m, namespace)
}

func (p *problems) upstream(at string, m map[string]any, namespace string) Upstream {
	var unknown []string
	one := func(k string) string {
		s, ok := m[k].(string)
		if m[k] != nil && !ok {
			p.add(at+"."+k, fmt.Sprint(m[k]), "is not a text", "write one text")
		}
		return s
	}
	for k := range m {
		if !slices.Contains([]string{"service", "name", "listen", "to", "host", "protocol"}, k) {
			unknown = append(unknown, k)
		}
	}
	slices.Sort(unknown)
	for _, k := range unknown {
		p.add(at+"."+k, fmt.Sprint(m[k]), "unknown key", "known are service or name, listen, to, host and protocol")
	}
	u := Upstream{Service: qualified(cmp.Or(one("service"), one("name")), namespace), Listen: p.address(at+".listen", one("listen"), false),
		Host: one("host"), Protocol: one("protocol")}
	for _, a := range p.list1(at+".to", m["to"]) {
		u.To = append(u.To, p.address(at+".to", a, true))
	}
	if u.Service == "" {
		p.add(at+".service", "", "is missing", "name the service that is called")
	}
	if len(u.To) == 0 && (u.Protocol == "tcp" || u.Protocol == "auto") {
		p.add(at+".to", "", "is missing", "list the endpoints, host:port; only those of http are learned from sidecars")
	}
	if !slices.Contains([]string{"", "http", "tcp", "auto"}, u.Protocol) {
		p.add(at+".protocol", u.Protocol, "is not one of the values", "write http, tcp or auto")
	}
	if u.Host != "" && u.Protocol == "tcp" {
		p.add(at+".host", u.Host, "is for HTTP, but the protocol is tcp", "leave out the host, and let the application call the port at listen")
	}
	return u
}

var serviceName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// check finds what is wrong between the keys.
func (p *problems) check(c *Config) {
	switch {
	case c.Service == "":
		p.add("service", "", "is missing", "name the service beside this sidecar, for example bank/accounts")
	case !serviceName.MatchString(c.Service):
		p.add("service", c.Service, "is not namespace/name", "use lower-case letters, digits and '-'")
	}
	if c.Alone() && !c.DTM.Open() && !c.Standby {
		p.add("app", "", "is missing", "give the application's host:port")
	}
	if c.Standby && !c.Alone() {
		p.add("standby", "true", "has an application beside it", "leave out app: a stand-by adopts for services that have no sidecar left")
	}
	if c.Standby && !c.SharedStore() {
		p.add("standby", "true", "has a store of its own, and no journal but its own is in it", "set store to the engine that the mesh shares")
	}
	if host, _, err := net.SplitHostPort(c.Peer); c.SharedStore() && err == nil && c.AdvertisePeer == "" && len(c.ControlPlane) == 0 {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			p.add("advertise-peer", "", "is missing: peer is bound to all addresses, and others on the shared store find this sidecar by one", "give the host:port by which they reach the peer port")
		}
	}
	if c.SharedStore() && c.MeshSecretFile == "" {
		p.add("mesh-secret-file", "", "is missing, but the store is shared", "make one file for the whole mesh with `openssl rand -hex 32`")
	}
	if c.Alone() && len(c.Upstreams) > 0 {
		p.add("upstreams", c.Upstreams[0].Service, "has no application beside it that could call it", "give the application's host:port as app")
	}
	if len(c.Peers) > 0 && c.MeshSecretFile == "" {
		p.add("mesh-secret-file", "", "is missing, but there are peers", "make one file for the whole mesh with `openssl rand -hex 32`")
	}
	for _, k := range []struct{ key, value string }{{"data-dir", c.DataDir}, {"inbound", c.Inbound}, {"api", c.API}, {"peer", c.Peer}} {
		if k.value == "" {
			p.add(k.key, "", "is empty", "give it a value, or leave the key out for its default")
		}
	}
	p.checkControl(c)
	p.checkUpstreams(c)
	p.checkPorts(c)
}

func (p *problems) checkUpstreams(c *Config) {
	hosts, services := map[string]string{}, map[string]bool{}
	for _, u := range c.Upstreams {
		if len(u.To) == 0 && len(c.Peers) == 0 && len(c.ControlPlane) == 0 {
			p.add("upstreams", u.Service, "has no `to`, and neither peers nor a control plane could bring its endpoints", "list the endpoints of the service, host:port")
		}
		if u.Service != "" && !serviceName.MatchString(u.Service) {
			p.add("upstreams", u.Service, "is not namespace/name", "use lower-case letters, digits and '-'")
		}
		if u.Service != "" && services[u.Service] {
			p.add("upstreams", u.Service, "two upstreams claim this service", "keep one and list all endpoints in its `to`")
		}
		services[u.Service] = true
		if u.Listen == "" && u.Host == "" && c.Redirect.Outbound == "" {
			p.add("upstreams", u.Service, "has neither listen nor host", "give the port that the application calls, or the host it names through the forward proxy, or set transparent-outbound")
		}
		host := strings.ToLower(u.Host)
		if other, taken := hosts[host]; taken && host != "" {
			p.add("upstreams", u.Host, "two upstreams claim this host: "+other+" and "+u.Service, "give each service a host of its own")
		}
		hosts[host] = u.Service
	}
}

// checkPorts finds two listeners on one fixed port.
func (p *problems) checkPorts(c *Config) {
	taken := map[string]string{}
	claim := func(key, addr string) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil || port == "0" {
			return
		}
		if other, ok := taken[addr]; ok {
			p.add(key, addr, "is taken by "+other, "give each its own port, or port 0")
			return
		}
		taken[addr] = key
	}
	claim("inbound", c.Inbound)
	claim("outbound", c.Outbound)
	claim("transparent-outbound", c.Redirect.Outbound)
	claim("transparent-inbound", c.Redirect.Inbound)
	claim("api", c.API)
	claim("peer", c.Peer)
	for _, u := range c.Upstreams {
		claim("upstreams "+u.Service, u.Listen)
	}
}
