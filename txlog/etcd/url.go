package etcd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// ParseURL makes the options of one URL:
//
//	etcd://[user:password@]host:port[,host:port...][/prefix][?name=value&...]
//
// The names are retain, quota and request-bytes (sizes such as 512MiB), txn-ops and queue (numbers), try, patience and
// stall (durations), and, for TLS, tls=true, ca, cert and key (files of PEM; each of them asks for TLS). An error names
// every value that is wrong.
func ParseURL(text string) (Options, error) {
	rest, ok := strings.CutPrefix(text, "etcd://")
	if !ok {
		return Options{}, errors.New("etcd: a URL begins with etcd:// and names the host:port of each member, with commas between them")
	}
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	hosts := rest[:end]
	var o Options
	if at := strings.LastIndex(hosts, "@"); at >= 0 { // what is before it is not for error messages
		u, err := url.Parse("etcd://" + hosts[:at+1] + "host")
		if err != nil {
			return Options{}, errors.New("etcd: user and password before the @ of the URL are not well formed; escape what is special in them")
		}
		o.User = u.User.Username()
		o.Password, _ = u.User.Password()
		hosts = hosts[at+1:]
	}
	for _, host := range strings.Split(hosts, ",") {
		if !strings.Contains(host, ":") {
			return Options{}, fmt.Errorf("etcd: member %q of the URL: want host:port", host)
		}
		o.Endpoints = append(o.Endpoints, host)
	}
	u, err := url.Parse("etcd://host" + rest[end:])
	if err != nil {
		return Options{}, fmt.Errorf("etcd: prefix and settings of the URL: %w", err)
	}
	if strings.Trim(u.Path, "/") != "" {
		o.Prefix = strings.TrimSuffix(u.Path, "/") + "/"
	}
	return o, o.set(u.Query())
}

// set takes the settings behind the question mark.
func (o *Options) set(q url.Values) error {
	var errs []error
	var files tlsFiles
	for name := range q {
		value := q.Get(name)
		var err error
		switch name {
		case "retain":
			o.RetainBytes, err = size(value)
		case "quota":
			o.QuotaBytes, err = size(value)
		case "request-bytes":
			var n int64
			n, err = size(value)
			o.BytesMax = int(n)
		case "txn-ops":
			_, err = fmt.Sscanf(value, "%d", &o.OpsMax)
		case "queue":
			_, err = fmt.Sscanf(value, "%d", &o.QueueMax)
		case "try":
			o.Try, err = time.ParseDuration(value)
		case "patience":
			o.Patience, err = time.ParseDuration(value)
		case "stall":
			o.Stall, err = time.ParseDuration(value)
		case "tls":
			if files.on = value == "true"; !files.on && value != "false" {
				err = errors.New("want true or false")
			}
		case "ca":
			files.ca = value
		case "cert":
			files.cert = value
		case "key":
			files.key = value
		default:
			err = errors.New("no such setting")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("etcd: %s=%q of the URL: %w", name, value, err))
		}
	}
	var err error
	if o.TLS, err = files.config(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func size(text string) (int64, error) {
	n, err := humanize.ParseBytes(text)
	if err == nil && n > 1<<62 {
		err = errors.New("too large")
	}
	return int64(n), err
}

// tlsFiles is what a URL says of TLS.
type tlsFiles struct {
	on            bool
	ca, cert, key string
}

// config is nil without TLS.
func (f tlsFiles) config() (*tls.Config, error) {
	if !f.on && f.ca == "" && f.cert == "" && f.key == "" {
		return nil, nil //nolint:nilnil // nil is the client's word for "no TLS"
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		text, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("etcd: ca of the URL: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("etcd: ca of the URL: %s holds no certificate in PEM", f.ca)
		}
	}
	if f.cert == "" && f.key == "" {
		return c, nil
	}
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("etcd: cert and key of the URL: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}
