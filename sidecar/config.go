package sidecar

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"

	"txmesh/interceptor/proxy"
)

// Config is what a sidecar is made of. Addresses are host:port; an empty Outbound means no forward proxy.
type Config struct {
	Service   string // namespace/name
	App       string
	Inbound   string
	Advertise string
	Outbound  string
	API       string
	Peer      string
	Upstreams []Upstream
	Redirect  Redirect
	RawIdle   time.Duration
	Peers     []string
	Policies  []string

	ControlPlane     []string
	ControlPlaneCA   string // file
	ControlPlaneWait time.Duration

	DTM      DTM
	Identity Identity

	TrustedGateways []netip.Prefix // whose tx-start counts at Inbound

	Store         string // badger, or the URL of a shared one
	Lease         time.Duration
	Standby       bool
	AdvertisePeer string

	DataDir        string
	MeshSecretFile string
	TokenFile      string
	SecretsDir     string
	AllowLinkLocal bool

	LogLevel  string
	LogFormat string

	Limits         proxy.Limits // of the data path, but for Conns
	MaxBody        int
	MaxConnections int
	MaxOpen        int
	MaxBranches    int

	CallTimeout    time.Duration
	PeerTimeout    time.Duration
	CommitWait     time.Duration
	TimeoutDefault time.Duration
	GracePeriod    time.Duration
	Retention      time.Duration
	RetentionBytes int64
	MemoryLimit    int64
}

// SharedStore reports whether the journal is in an engine that survives this sidecar.
func (c *Config) SharedStore() bool { return c.Store != embeddedStore }

// embeddedStore is the default of the key store.
const embeddedStore = "badger"

// Upstream is a service that the application reaches by a port of its sidecar.
type Upstream struct {
	Service string   // namespace/name
	Listen  string   // host:port on this side
	To      []string // endpoints of the service
	Host    string   // name that the application uses for it; empty: none
	// Protocol is http, tcp, auto (as policies say), or empty: http for the port at Listen, auto where connections are
	// redirected.
	Protocol string
}

// ErrHelp says that the user asked for help, which Load has written.
var ErrHelp = errors.New("help was asked for")

// Load reads the configuration from flags, environment and file, in this order of precedence. The error of a wrong
// configuration is Problems, with everything that is wrong.
func Load(args []string, environ []string, help func(text string)) (Config, error) {
	v := viper.New()
	flags, err := readFlags(v, args, help)
	if err != nil {
		return Config{}, err
	}
	var p problems
	p.environment(v, flags, environ)
	if path := v.GetString("config"); path != "" {
		p.file(v, path)
	}
	c := p.values(v)
	p.check(&c)
	if len(p.list) > 0 {
		return Config{}, p.sorted()
	}
	return c, nil
}

func readFlags(v *viper.Viper, args []string, help func(string)) (*pflag.FlagSet, error) {
	fs := pflag.NewFlagSet("txmesh-sidecar", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	fs.String("config", "", "YAML file with the keys below [TXMESH_CONFIG]")
	for _, k := range keys() {
		fs.String(k.name, k.def, fmt.Sprintf("%s [%s]", strings.ReplaceAll(k.doc, "`", "'"), k.env()))
		fs.Lookup(k.name).Value = &flagValue{text: k.def, form: k.form(), separator: k.separator()}
	}
	err := fs.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		help("txmesh-sidecar stands beside one service and makes its calls atomic.\n\nUsage: txmesh-sidecar [--config FILE] [--KEY VALUE ...]\n\n" +
			fs.FlagUsagesWrapped(120))
		return nil, ErrHelp
	}
	if err != nil {
		return nil, Problems{{Text: err.Error(), Remedy: "see txmesh-sidecar --help"}}
	}
	if fs.NArg() > 0 {
		return nil, Problems{{Value: fs.Arg(0), Text: "unexpected argument", Remedy: "write it as --KEY VALUE"}}
	}
	return fs, v.BindPFlags(fs)
}

// flagValue keeps the text of a flag. Lists may be given in several flags.
type flagValue struct {
	text, form string
	separator  string // between the values of a flag that is given several times; empty: the last wins
	set        bool
}

func (f *flagValue) String() string { return f.text }
func (f *flagValue) Type() string   { return f.form }

// Set takes the value as it is: it is checked together with all others.
func (f *flagValue) Set(s string) error {
	if f.separator != "" && f.set {
		s = f.text + f.separator + s
	}
	f.text, f.set = s, true
	return nil
}

// environment takes the TXMESH_ variables, which rank below flags and above the file; one that is no key is a mistake.
func (p *problems) environment(v *viper.Viper, flags *pflag.FlagSet, environ []string) {
	known := map[string]string{"TXMESH_CONFIG": "config"}
	for _, k := range keys() {
		known[k.env()] = k.name
	}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, "TXMESH_") {
			continue
		}
		key, ok := known[name]
		if !ok {
			p.add(name, value, "unknown variable", "remove it; docs/reference/config.md lists all keys")
		} else if !flags.Changed(key) {
			v.Set(key, value)
		}
	}
}

// file merges the YAML file. Its keys are read a second time as they stand there, because viper says nothing about
// those that it does not know.
func (p *problems) file(v *viper.Viper, path string) {
	data, err := os.ReadFile(path)
	if err != nil {
		p.add("config", path, err.Error(), "name a readable YAML file")
		return
	}
	v.SetConfigType("yaml")
	if err := v.ReadConfig(bytes.NewReader(data)); err != nil {
		p.add("config", path, err.Error(), "correct the YAML")
		return
	}
	only := viper.New()
	only.SetConfigType("yaml")
	if err := only.ReadConfig(bytes.NewReader(data)); err != nil {
		p.add("config", path, err.Error(), "correct the YAML")
		return
	}
	var names []string
	for _, k := range keys() {
		names = append(names, k.name)
	}
	found := only.AllKeys()
	slices.Sort(found)
	for _, k := range found {
		if !slices.Contains(names, k) {
			p.add(k, fmt.Sprint(only.Get(k)), "unknown key in "+path, "remove it; docs/reference/config.md lists all keys")
		}
	}
}

// values parses each key.
func (p *problems) values(v *viper.Viper) Config {
	one := func(name string) string {
		switch x := v.Get(name).(type) {
		case []any, map[string]any:
			p.add(name, fmt.Sprint(x), "is not a single value", "write one value, without - or {}")
			return ""
		}
		return strings.TrimSpace(v.GetString(name))
	}
	c := Config{Service: qualified(one("service"), "default"), App: p.address("app", one("app"), true), Inbound: p.address("inbound", one("inbound"), false),
		Advertise: p.address("advertise", one("advertise"), true), Outbound: p.address("outbound", one("outbound"), false),
		API: p.address("api", one("api"), false), Peer: p.address("peer", one("peer"), false),
		Policies: p.list1("policies", v.Get("policies")), TrustedGateways: p.networks("trusted-gateways", v.Get("trusted-gateways")), DataDir: one("data-dir"), MeshSecretFile: one("mesh-secret-file"),
		TokenFile: one("token-file"), SecretsDir: one("secrets-dir"), AllowLinkLocal: p.boolean("allow-link-local", one("allow-link-local")),
		LogLevel: p.word("log-level", one("log-level")), LogFormat: p.word("log-format", one("log-format")),
		MaxBody: int(p.size("max-body", one("max-body"))), MaxConnections: p.number("max-connections", one("max-connections")),
		MaxOpen: p.number("max-open", one("max-open")), MaxBranches: p.number("max-branches", one("max-branches")),
		CallTimeout: p.duration("call-timeout", one("call-timeout")), PeerTimeout: p.duration("peer-timeout", one("peer-timeout")),
		CommitWait: p.duration("commit-wait", one("commit-wait")), TimeoutDefault: p.duration("timeout-default", one("timeout-default")),
		GracePeriod: p.duration("grace-period", one("grace-period")), Retention: p.duration("retention", one("retention")),
		RetentionBytes: p.size("retention-bytes", one("retention-bytes")), MemoryLimit: p.size("memory-limit", one("memory-limit"))}
	c.Store, c.Lease = p.storeURL("store", one("store")), p.duration("lease", one("lease"))
	c.Standby, c.AdvertisePeer = p.boolean("standby", one("standby")), p.address("advertise-peer", one("advertise-peer"), true)
	c.DTM = DTM{HTTP: p.address("dtm", one("dtm"), false), GRPC: p.address("dtm-grpc", one("dtm-grpc"), false),
		TimeoutToFail: p.duration("dtm-timeout-to-fail", one("dtm-timeout-to-fail")), RetryInterval: p.duration("dtm-retry-interval", one("dtm-retry-interval")),
		RetryMax: p.duration("dtm-retry-max", one("dtm-retry-max")), RequestTimeout: p.duration("dtm-request-timeout", one("dtm-request-timeout")),
		ResumeAfter: p.duration("dtm-resume-after", one("dtm-resume-after")), AlertURL: p.url("dtm-alert-url", one("dtm-alert-url")),
		AlertAfter: p.number("dtm-alert-after", one("dtm-alert-after"))}
	c.Limits, c.Identity = p.limits(one), p.identity(one)
	for _, a := range p.list1("control-plane", v.Get("control-plane")) {
		c.ControlPlane = append(c.ControlPlane, p.address("control-plane", a, true))
	}
	c.ControlPlaneCA, c.ControlPlaneWait = one("control-plane-ca"), p.duration("control-plane-wait", one("control-plane-wait"))
	if (c.DTM.Open() || c.Standby) && c.Alone() && c.Service == "" {
		c.Service = aloneService
	}
	for _, a := range p.list1("peers", v.Get("peers")) {
		c.Peers = append(c.Peers, p.address("peers", a, true))
	}
	c.Redirect, c.RawIdle = p.redirect(one), p.duration("raw-idle", one("raw-idle"))
	c.Upstreams = p.upstreams(v.Get("upstreams"), c.Service)
	return c
}
