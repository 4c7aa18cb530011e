package controlplane

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// Config is what a control plane is made of. Addresses are host:port.
type Config struct {
	Listen   string
	API      string
	Policies []string

	TrustDomain     string
	DataDir         string
	RootCertificate string
	RootKey         string
	MoreRoots       string
	CertificateLife time.Duration
	Names           []string
	TokensDir       string
	MeshSecretFile  string
	TokenFile       string
	Insecure        bool

	Name     string
	Replicas []string

	Heartbeat time.Duration
	Grace     time.Duration
	Lease     time.Duration
	Takeover  time.Duration

	LogLevel    string
	LogFormat   string
	MemoryLimit int64
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
	fs := pflag.NewFlagSet("txmesh-controlplane", pflag.ContinueOnError)
	fs.SortFlags = false
	fs.Usage = func() {}
	fs.String("config", "", "YAML file with the keys below [TXMESH_CONFIG]")
	for _, k := range keys() {
		fs.String(k.name, k.def, fmt.Sprintf("%s [%s]", strings.ReplaceAll(k.doc, "`", "'"), k.env()))
		fs.Lookup(k.name).Value = &flagValue{text: k.def, form: k.form(), list: k.list()}
	}
	err := fs.Parse(args)
	if errors.Is(err, pflag.ErrHelp) {
		help("txmesh-controlplane hands out policies, peers and certificates to the sidecars of a mesh.\n\n" +
			"Usage: txmesh-controlplane [--config FILE] [--KEY VALUE ...]\n\n" + fs.FlagUsagesWrapped(120))
		return nil, ErrHelp
	}
	if err != nil {
		return nil, Problems{{Text: err.Error(), Remedy: "see txmesh-controlplane --help"}}
	}
	if fs.NArg() > 0 {
		return nil, Problems{{Value: fs.Arg(0), Text: "unexpected argument", Remedy: "write it as --KEY VALUE"}}
	}
	return fs, v.BindPFlags(fs)
}

// flagValue keeps the text of a flag. Lists may be given in several flags.
type flagValue struct {
	text, form string
	list, set  bool
}

func (f *flagValue) String() string { return f.text }
func (f *flagValue) Type() string   { return f.form }

// Set takes the value as it is: it is checked together with all others.
func (f *flagValue) Set(s string) error {
	if f.list && f.set {
		s = f.text + "," + s
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
			p.add(name, value, "unknown variable", "remove it; docs/reference/controlplane.md lists all keys")
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
	only := viper.New()
	for _, to := range []*viper.Viper{v, only} {
		to.SetConfigType("yaml")
		if err := to.ReadConfig(bytes.NewReader(data)); err != nil {
			p.add("config", path, err.Error(), "correct the YAML")
			return
		}
	}
	found := only.AllKeys()
	slices.Sort(found)
	for _, name := range found {
		if !slices.ContainsFunc(keys(), func(k key) bool { return k.name == name }) {
			p.add(name, fmt.Sprint(only.Get(name)), "unknown key in "+path, "remove it; docs/reference/controlplane.md lists all keys")
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
	c := Config{Listen: p.address("listen", one("listen"), false), API: p.address("api", one("api"), false),
		Policies: p.list1("policies", v.Get("policies")), TrustDomain: one("trust-domain"), DataDir: one("data-dir"),
		RootCertificate: one("root-certificate"), RootKey: one("root-key"), MoreRoots: one("more-roots"),
		CertificateLife: p.duration("certificate-life", one("certificate-life")), Names: p.list1("names", v.Get("names")),
		TokensDir: one("tokens-dir"), MeshSecretFile: one("mesh-secret-file"), TokenFile: one("token-file"),
		Insecure: p.word("insecure", one("insecure"), "true", "false") == "true", Name: one("name"),
		Heartbeat: p.duration("heartbeat", one("heartbeat")), Grace: p.duration("grace", one("grace")),
		Lease: p.duration("lease", one("lease")), Takeover: p.duration("takeover", one("takeover")),
		LogLevel:  p.word("log-level", one("log-level"), "debug", "info", "warn", "error"),
		LogFormat: p.word("log-format", one("log-format"), "json", "text"), MemoryLimit: p.size("memory-limit", one("memory-limit"))}
	for _, a := range p.list1("replicas", v.Get("replicas")) {
		c.Replicas = append(c.Replicas, p.address("replicas", a, true))
	}
	return c
}
