package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
)

// dtmTables is what a server of DTM makes in MySQL.
const dtmTables = `create table trans_global (
	id bigint not null auto_increment primary key, gid varchar(128) not null unique, trans_type varchar(45) not null, status varchar(12) not null,
	query_prepared varchar(1024), protocol varchar(45) not null, create_time datetime, update_time datetime, finish_time datetime, rollback_time datetime,
	options varchar(1024) default '', custom_data varchar(1024) default '', next_cron_interval int, next_cron_time datetime, owner varchar(128) not null default '',
	ext_data text, result varchar(1024) default '', rollback_reason varchar(1024) default '', key (status, next_cron_time), key (owner));
create table trans_branch_op (
	id bigint not null auto_increment primary key, gid varchar(128) not null, url varchar(1024) not null, data text, bin_data blob,
	branch_id varchar(128) not null, op varchar(45) not null, status varchar(45) not null, finish_time datetime, rollback_time datetime,
	create_time datetime, update_time datetime, unique key (gid, branch_id, op))`

// tables are filled as a server of DTM would have done.
type tables struct {
	*migration
	db   *sql.DB
	from string // for --from
	zone *time.Location
}

func newTables(t *testing.T, name string) *tables {
	t.Helper()
	dsn, err := mysql.ParseDSN(servers.MariaDB(t))
	if err != nil {
		t.Fatal(err)
	}
	zone, err := time.LoadLocation("Asia/Shanghai") // as where the server ran
	if err != nil {
		t.Fatal(err)
	}
	admin, err := sql.Open("mysql", dsn.FormatDSN())
	if err != nil {
		t.Fatal(err)
	}
	_, err = admin.Exec("create database " + name)
	if err := errors.Join(err, admin.Close()); err != nil {
		t.Fatal(err)
	}
	dsn.DBName, dsn.MultiStatements = name, true
	d := &tables{migration: newMigration(t), zone: zone,
		from: fmt.Sprintf("mysql://%s@%s/%s?loc=%s", dsn.User, dsn.Addr, name, url.QueryEscape(zone.String()))}
	if d.db, err = sql.Open("mysql", dsn.FormatDSN()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.db.Close(); err != nil {
			t.Error(err)
		}
	})
	d.exec(dtmTables)
	return d
}

func (d *tables) exec(query string, args ...any) {
	d.t.Helper()
	if _, err := d.db.Exec(query, args...); err != nil {
		d.t.Fatalf("%s: %v", query, err)
	}
}

// insert writes a transaction; rows are "branch op status /path".
func (d *tables) insert(gid, transType, status string, age time.Duration, columns map[string]string, rows ...string) {
	d.t.Helper()
	at := time.Now().Add(-age).In(d.zone).Format(time.DateTime)
	d.exec("insert into trans_global (gid, trans_type, status, protocol, create_time, update_time, options, next_cron_interval, next_cron_time, owner) values (?, ?, ?, 'http', ?, ?, ?, 10, ?, 'x')",
		gid, transType, status, at, at, `{"branch_headers":{},"concurrent":false}`, at)
	for name, value := range columns {
		d.exec("update trans_global set "+name+" = ? where gid = ?", value, gid)
	}
	for _, r := range rows {
		f := strings.Fields(r)
		d.exec("insert into trans_branch_op (gid, url, bin_data, branch_id, op, status, create_time, update_time) values (?, ?, ?, ?, ?, ?, ?, ?)",
			gid, d.service.URL+f[3], []byte(`{"amount":30}`), f[0], f[1], f[2], at, at)
	}
}

// fill writes the transactions of migration.fill, as they stand when the server is stopped.
func (d *tables) fill() {
	d.insert("saga-submitted", "saga", "submitted", time.Minute, nil, "01 compensate prepared /does", "01 action succeed /does",
		"02 compensate prepared /does", "02 action prepared /hangs", "03 compensate prepared /does", "03 action prepared /does")
	d.insert("saga-aborting", "saga", "aborting", time.Minute, map[string]string{"rollback_reason": "no money"}, "01 compensate prepared /hangs", "01 action succeed /does",
		"02 compensate succeed /does", "02 action failed /refuses", "03 compensate prepared /does", "03 action prepared /does")
	for _, w := range [][3]string{{"tcc", "cancel", "confirm"}, {"xa", "rollback", "commit"}} {
		row := func(branch, op, status, path string) string {
			return strings.Join([]string{branch, op, status, path}, " ")
		}
		d.insert(w[0]+"-prepared", w[0], "prepared", time.Minute, nil, row("01", w[1], "prepared", "/hangs"), row("01", w[2], "prepared", "/hangs"),
			row("02", w[1], "prepared", "/does"), row("02", w[2], "prepared", "/does"))
		d.insert(w[0]+"-submitted", w[0], "submitted", time.Minute, nil, row("01", w[1], "prepared", "/hangs"), row("01", w[2], "prepared", "/hangs"),
			row("02", w[1], "prepared", "/does"), row("02", w[2], "succeed", "/does"))
		d.insert(w[0]+"-aborting", w[0], "aborting", time.Minute, nil, row("01", w[1], "prepared", "/hangs"), row("01", w[2], "prepared", "/hangs"),
			row("02", w[1], "succeed", "/does"), row("02", w[2], "prepared", "/does"))
	}
	d.insert("msg-prepared", "msg", "prepared", time.Minute, map[string]string{"query_prepared": d.service.URL + "/does"}, "01 action prepared /does", "02 action prepared /does")
	d.insert("msg-submitted", "msg", "submitted", time.Hour, nil, "01 action succeed /does", "02 action prepared /hangs", "03 action prepared /does")
	d.insert("workflow-prepared", "workflow", "prepared", time.Minute, map[string]string{"query_prepared": d.service.URL + "/does", "custom_data": `{"name":"w","data":"e30="}`}, "01 action succeed /does")
	d.insert("saga-succeed", "saga", "succeed", time.Hour, nil, "01 compensate prepared /does", "01 action succeed /does")
	d.insert("saga-failed", "saga", "failed", time.Hour, nil, "01 compensate succeed /does", "01 action succeed /does", "02 compensate succeed /does", "02 action failed /refuses")
	d.insert("saga-old", "saga", "succeed", 30*24*time.Hour, nil, "01 compensate prepared /does", "01 action succeed /does")
	d.insert("saga-forced", "saga", "failed", time.Hour, nil, "01 compensate prepared /does", "01 action succeed /does")
	d.insert("saga-prepared", "saga", "prepared", time.Hour, nil, "01 compensate prepared /does", "01 action prepared /does")
	d.insert("tcc-driver", "tcc", "submitted", time.Minute, nil)
	d.exec("insert into trans_branch_op (gid, url, branch_id, op, status) values ('tcc-driver', 'nacos://pay/cancel', '01', 'cancel', 'prepared'), ('tcc-driver', 'nacos://pay/confirm', '01', 'confirm', 'prepared')")
	d.service.did = append([]string(nil), doneAtSource...)
}

// sum tells whether the tables have been written.
func (d *tables) sum() (sum string) {
	d.t.Helper()
	for _, table := range []string{"trans_global", "trans_branch_op"} {
		var name, value string
		if err := d.db.QueryRow("checksum table "+table).Scan(&name, &value); err != nil {
			d.t.Fatal(err)
		}
		sum += value + " "
	}
	return sum
}

// The tables of a server that is stopped are the exact way: everything that can go goes, what cannot is named, and the
// tables are as they were.
func TestMigrateFromTables(t *testing.T) {
	t.Parallel()
	d := newTables(t, "dtm_exact")
	d.fill()
	before := d.sum()
	code, out := d.run(d.from)
	for _, want := range []string{"12 unfinished transactions would be taken over", "1 unfinished transaction would stay", "by a driver for nacos that is not here",
		"2 finished transactions would be kept", "1 finished transaction would be left out", "it was stopped by force"} {
		if !strings.Contains(out, want) {
			t.Errorf("the dry run does not say %q", want)
		}
	}
	if code != 2 || strings.Contains(out, "saga-old") {
		t.Errorf("dry run = %d\n%s", code, out)
	}
	if code, out := d.run(d.from, "--apply"); code != 1 || !strings.Contains(out, "--source-stopped is missing") {
		t.Errorf("apply without the operator's word = %d\n%s", code, out)
	}
	if code, out := d.run(d.from, "--apply", "--source-stopped"); code != 2 || !strings.Contains(out, "12 unfinished transactions taken over") {
		t.Errorf("apply = %d\n%s", code, out)
	}
	if code, out := d.run(d.from, "--apply", "--source-stopped"); code != 2 || !strings.Contains(out, "14 transactions had been taken over before") {
		t.Errorf("apply again = %d\n%s", code, out)
	}
	if after := d.sum(); after != before {
		t.Errorf("the tables were written: %s, before %s", after, before)
	}
	if got := d.status(d.to, "saga-prepared"); got != "prepared" {
		t.Errorf("the prepared saga is %q", got)
	}
	for _, gid := range []string{"saga-old", "saga-forced", "tcc-driver"} {
		if got := d.status(d.to, gid); got != "" {
			t.Errorf("%s is %q at the target", gid, got)
		}
	}
	d.finish()
}

// A server that still works on the tables shows it, whatever the operator says.
func TestMigrateRefusesTablesThatChange(t *testing.T) {
	t.Parallel()
	d := newTables(t, "dtm_busy")
	d.fill()
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
				if _, err := d.db.Exec("update trans_global set owner = ? where gid = 'msg-submitted'", n); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	code, out := d.run(d.from, "--apply", "--source-stopped")
	close(stop)
	<-done
	if code != 1 || !strings.Contains(out, "the tables change, at transaction msg-submitted") {
		t.Errorf("apply = %d\n%s", code, out)
	}
	if got := d.status(d.to, "msg-submitted"); got != "" {
		t.Errorf("it is %q at the target", got)
	}
	if _, asked := d.service.state(); asked > 0 {
		t.Errorf("%d calls were made", asked)
	}
}

// Times without their zone would make transactions older or younger than they are.
func TestMigrateWantsTheZoneOfTheTables(t *testing.T) {
	t.Parallel()
	d := newTables(t, "dtm_zone")
	d.fill()
	from, _, _ := strings.Cut(d.from, "?")
	if code, out := d.run(from); code != 1 || !strings.Contains(out, "name the zone of the tables' times") {
		t.Errorf("dry run = %d\n%s", code, out)
	}
}
