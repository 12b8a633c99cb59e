/** Modules that the build makes: see scripts/build_web.ts. */
declare module 'virtual:zoom' {
  /** The script of reports: graphs on the page can be zoomed and moved from now on. */
  export function zoomGraphs(): void;
}
declare module 'virtual:report-hashes' {
  /** Of what reports have inline. */
  const hashes: import('../report/page_markup.js').Hashes;
  export default hashes;
}
declare module 'virtual:report.css';
declare module '*.css';
declare module '*?worker&url' {
  const url: string;
  export default url;
}
