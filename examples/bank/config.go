package main

import (
	"errors"
	"flag"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// config is what one service is started with. Each flag has a default in an environment variable: BANK_ and the
// flag's name in capitals, with underscores.
type config struct {
	as       string // transfers, accounts or savings
	listen   string
	data     string
	balances []opening
	accounts string // URL of the accounts service
	savings  string // URL of the savings service
	delay    time.Duration
	hold     time.Duration
}

// opening is an account as it stands when its ledger is made.
type opening struct {
	account string
	balance int64
	closed  bool
}

func parseConfig(args []string, env func(string) string) (config, error) {
	var c config
	var balances string
	fs := flag.NewFlagSet("bank", flag.ContinueOnError)
	text := func(p *string, name, def, usage string) {
		if v := env("BANK_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))); v != "" {
			def = v
		}
		fs.StringVar(p, name, def, usage)
	}
	var delay, hold string
	text(&c.as, "as", "transfers", "what to serve: transfers, accounts or savings")
	text(&c.listen, "listen", "127.0.0.1:0", "address to listen on; port 0 picks one and prints it")
	text(&c.data, "data", "", "file that keeps the entries (accounts and savings)")
	text(&balances, "balances", "", "accounts at the start: alice=100,carol=closed")
	text(&c.accounts, "accounts-url", "", "where transfers finds accounts: http://host:port")
	text(&c.savings, "savings-url", "", "where transfers finds savings: http://host:port")
	text(&delay, "delay", "0s", "how long each answer to a change is delayed")
	text(&hold, "hold", "5s", "how long the answer of the account named slow is held")
	if err := fs.Parse(args); err != nil {
		return config{}, fmt.Errorf("read flags: %w", err)
	}
	if fs.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q: everything is a --flag", fs.Arg(0))
	}
	errs := []error{c.check()}
	c.delay = duration("delay", delay, &errs)
	c.hold = duration("hold", hold, &errs)
	var err error
	c.balances, err = parseBalances(balances)
	return c, errors.Join(append(errs, err)...)
}

func (c *config) check() error {
	switch c.as {
	case "transfers":
		return errors.Join(checkURL("accounts-url", c.accounts), checkURL("savings-url", c.savings))
	case "accounts", "savings":
		if c.data == "" {
			return fmt.Errorf("--data is missing: name the file that keeps the entries of %s", c.as)
		}
		return nil
	}
	return fmt.Errorf("--as %q: want transfers, accounts or savings", c.as)
}

func checkURL(name, value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" || u.Host == "" {
		return fmt.Errorf("--%s %q: want http://host:port", name, value)
	}
	return nil
}

func duration(name, value string, errs *[]error) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil || d < 0 {
		*errs = append(*errs, fmt.Errorf("--%s %q: want a duration such as 250ms or 5s", name, value))
	}
	return d
}

func parseBalances(value string) ([]opening, error) {
	var openings []opening
	for pair := range strings.SplitSeq(value, ",") {
		if pair == "" {
			continue
		}
		account, amount, found := strings.Cut(pair, "=")
		o := opening{account: account, closed: amount == "closed"}
		var err error
		if !o.closed {
			o.balance, err = strconv.ParseInt(amount, 10, 64)
		}
		if !found || account == "" || err != nil || o.balance < 0 || o.balance > amountMax {
			return nil, fmt.Errorf("--balances %q: want account=amount or account=closed, found %q", value, pair)
		}
		openings = append(openings, o)
	}
	return openings, nil
}
