package takeover

import (
	"cmp"
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-sql-driver/mysql"
)

// Tables are those of a server of DTM that is stopped, in MySQL or MariaDB. They are read, never written.
type Tables struct {
	db  *sql.DB
	loc *time.Location // of their times, which have no zone
}

// OpenTables opens the tables at mysql://user:password@host:port/database?loc=Area/City&tls=true. The password may come from
// elsewhere.
func OpenTables(at *url.URL, password string) (*Tables, error) {
	c := mysql.NewConfig()
	c.Net, c.Addr, c.DBName = "tcp", at.Host, strings.Trim(at.Path, "/")
	if at.Port() == "" {
		c.Addr += ":3306"
	}
	if given, ok := at.User.Password(); ok {
		password = given
	}
	c.User, c.Passwd, c.Timeout = at.User.Username(), password, 10*time.Second
	loc := time.UTC
	for name, values := range at.Query() {
		var err error
		switch name {
		case "loc":
			loc, err = time.LoadLocation(values[0])
		case "tls":
			c.TLSConfig = values[0]
		default:
			err = errors.New("want loc or tls")
		}
		if err != nil {
			return nil, fmt.Errorf("parameter %s=%s: %w", name, values[0], err)
		}
	}
	if c.DBName == "" {
		return nil, errors.New("the database is missing; write mysql://user@host:3306/dtm")
	}
	connector, err := mysql.NewConnector(c)
	if err != nil {
		return nil, err
	}
	return &Tables{sql.OpenDB(connector), loc}, nil
}

// Close closes the connections.
func (t *Tables) Close() error { return t.db.Close() }

// Serves implements Source.
func (t *Tables) Serves() bool { return false }

// Stop implements Source. The server is stopped: there is nothing to do.
func (t *Tables) Stop(context.Context, string) error { return nil }

const unfinished = "status in ('prepared', 'submitted', 'aborting')"

// List implements Source.
func (t *Tables) List(ctx context.Context, since time.Time) ([]Title, error) {
	rows, err := t.all(ctx, "select gid, trans_type, status, create_time from trans_global where "+unfinished+
		" or create_time >= ? order by id", since.In(t.loc).Format(time.DateTime))
	if err != nil {
		return nil, err
	}
	var found []Title
	for _, r := range rows {
		at, err := t.time(r, "create_time")
		if err != nil {
			return nil, err
		}
		title := Title{GID: r["gid"].String, Type: r["trans_type"].String, Status: r["status"].String}
		if at != nil {
			title.Created = *at
		}
		found = append(found, title)
	}
	return found, nil
}

// aheadMax is how far clocks may differ.
const aheadMax = time.Minute

// Read implements Source.
func (t *Tables) Read(ctx context.Context, gid string) (Snapshot, error) {
	found, err := t.all(ctx, "select * from trans_global where gid = ?", gid)
	if err != nil {
		return Snapshot{}, err
	}
	if len(found) != 1 {
		return Snapshot{}, fmt.Errorf("table trans_global has %d rows with gid %s", len(found), gid)
	}
	v := map[string]any{"create_time": nil, "update_time": nil}
	for _, name := range []string{"gid", "trans_type", "status", "query_prepared", "protocol", "options", "custom_data", "result", "rollback_reason"} {
		if s := found[0][name]; s.Valid {
			v[name] = s.String
		}
	}
	for _, name := range []string{"create_time", "update_time"} {
		at, err := t.time(found[0], name)
		if err != nil {
			return Snapshot{}, err
		}
		if at != nil {
			v[name] = at
		}
		if at != nil && time.Until(*at) > aheadMax {
			return Snapshot{}, fmt.Errorf("%s of %s is %v ahead: name the zone of the tables' times, for example ?loc=Asia/Shanghai",
				name, gid, time.Until(*at).Round(time.Second))
		}
	}
	branches, err := t.branches(ctx, gid)
	if err != nil {
		return Snapshot{}, err
	}
	return snapshot(v, branches)
}

func snapshot(transaction map[string]any, branches []map[string]string) (Snapshot, error) {
	var s Snapshot
	var err error
	if s.Transaction, err = json.Marshal(transaction); err == nil {
		s.Branches, err = json.Marshal(branches)
	}
	return s, err
}

func (t *Tables) branches(ctx context.Context, gid string) ([]map[string]string, error) {
	rows, err := t.all(ctx, "select * from trans_branch_op where gid = ? order by id", gid)
	if err != nil {
		return nil, err
	}
	branches := []map[string]string{}
	for _, r := range rows {
		b := map[string]string{}
		for _, name := range []string{"gid", "url", "branch_id", "op", "status"} {
			b[name] = r[name].String
		}
		// data is where old releases kept the payload.
		b["bin_data"] = base64.StdEncoding.EncodeToString([]byte(cmp.Or(r["bin_data"].String, r["data"].String)))
		branches = append(branches, b)
	}
	return branches, nil
}

// Mark is what the unfinished transactions look like: while a server works on the tables, it changes.
func (t *Tables) Mark(ctx context.Context) (map[string]string, error) {
	rows, err := t.all(ctx, "select gid, status, update_time, next_cron_time, owner from trans_global where "+unfinished)
	if err != nil {
		return nil, err
	}
	mark := map[string]string{}
	for _, r := range rows {
		mark[r["gid"].String] = strings.Join([]string{r["status"].String, r["update_time"].String, r["next_cron_time"].String, r["owner"].String}, "|")
	}
	return mark, nil
}

type record map[string]sql.NullString

// all reads rows with whatever columns there are: releases of DTM differ.
func (t *Tables) all(ctx context.Context, query string, args ...any) (found []record, err error) {
	rows, err := t.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read the tables of DTM: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	names, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		values := make([]sql.NullString, len(names))
		to := make([]any, len(names))
		for i := range values {
			to[i] = &values[i]
		}
		if err := rows.Scan(to...); err != nil {
			return nil, err
		}
		r := record{}
		for i, name := range names {
			r[name] = values[i]
		}
		found = append(found, r)
	}
	return found, rows.Err()
}

func (t *Tables) time(r record, name string) (*time.Time, error) {
	text := r[name]
	if !text.Valid || text.String == "" || strings.HasPrefix(text.String, "0000") {
		return nil, nil
	}
	at, err := time.ParseInLocation(time.DateTime, text.String, t.loc) // takes fractions too
	if err != nil {
		return nil, fmt.Errorf("%s of %s: %w", name, r["gid"].String, err)
	}
	return &at, nil
}
